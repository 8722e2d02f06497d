"""ResNet-50's convolutions, 90% of whole blocks pruned, against cuDNN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.gpu.contest import Budget, Build, GpuCase, contest, nbytes
from benchmarks.gpu.layers import options, pruned
from benchmarks.gpu.rows import GpuResults, Missing
from sparseinfer import pack
from sparseinfer.ops.run_conv import conv_cuda

SHAPES = (
    (256, 256, 3, 14), (512, 512, 3, 7), (128, 128, 3, 28), (1024, 256, 1, 14), (2048, 512, 1, 7),
    (512, 128, 1, 28), (256, 64, 1, 56), (64, 64, 3, 56),
)  # fmt: skip
"""Output and input channels, kernel and image size; the most frequent first."""

SPARSITY = 0.9


def run(device: torch.device, results: GpuResults, budget: Budget, *, tiny: bool) -> None:
    """Time every shape, dense in channels_last against bsr; what there is no time for is named."""
    dtype = torch.float32 if tiny else torch.bfloat16
    batch = 1 if tiny else 32
    for out, into, size, image in ((64, 64, 1, 4),) if tiny else SHAPES:
        name = f"{out}x{into}x{size}x{size} on {image}x{image}, batch {batch}"
        pixels = batch * image * image
        k = into * size * size
        case = GpuCase(
            "convolutions", name, out, k, pixels, "block32", SPARSITY,
            (out + into) * pixels * dtype.itemsize,
        )  # fmt: skip

        def work(
            case: GpuCase = case, into: int = into, size: int = size, image: int = image
        ) -> None:
            contest(
                case, _contenders(case, into, size, image, batch, dtype, device), device, results
            )

        if not budget.run(work):
            results.missing.append(Missing("convolutions", name, "all", "no time left"))


def _contenders(
    case: GpuCase, into: int, size: int, image: int, batch: int, dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[str, Build]]:  # fmt: skip
    torch.manual_seed(0)
    flat = pruned(torch.randn(case.m, case.k, device=device), case.pattern, case.sparsity)
    # Blocks of channels in each tap, as bsr has them.
    weight = flat.to(dtype).view(case.m, size, size, into).permute(0, 3, 1, 2).contiguous()
    x = torch.randn(batch, into, image, image, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    pad = size // 2

    def dense() -> tuple[Callable[[], object], int]:
        own = weight.clone(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, own, padding=pad), nbytes(own)

    def bsr() -> tuple[Callable[[], object], int]:
        own = pack(weight, "bsr", **options(case.pattern)).to(device)
        geometry = ((size, size), (1, 1), (pad,) * 4, (1, 1), 1)
        return lambda: conv_cuda(x, own, None, case.m, *geometry), nbytes(own)

    return [("dense", dense), ("bsr", bsr)]
