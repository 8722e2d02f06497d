"""What the tests of the Triton bsr kernels run in worker processes: functions of plain values.

As triton_nm_checks.py, whose bound and compiler call are used here. A convolution is checked as the
matrix product that it is, over the inputs under each output pixel.
"""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional
from triton_nm_checks import assert_within, compile_one

from sparseinfer import formats
from sparseinfer.kernels.triton.bsr_grid import BsrMeta


def draw(shape: Sequence[int], density: float, *, integers: bool = False) -> torch.Tensor:
    """A random weight that keeps the share `density` of 16 x 16 corners of its [M, C] blocks."""
    torch.manual_seed(sum(shape))
    weight = torch.randint(-1, 2, shape).float() if integers else torch.randn(*shape)
    kept = torch.rand(-(-shape[0] // 16), -(-shape[1] // 16), *shape[2:]) < density
    kept = kept.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return weight * kept[: shape[0], : shape[1]]


def pack(weight: torch.Tensor, dtype: torch.dtype, block: int) -> tuple[torch.Tensor, BsrMeta]:
    packed = formats.pack(weight.to(dtype), "bsr", block=block)
    return packed, BsrMeta.from_info(formats.info(packed))


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    *,
    block: int = 16,
    device: str = "cpu",
) -> torch.Tensor:
    from sparseinfer.kernels.triton.bsr_linear import bsr_linear

    packed, meta = pack(weight, x.dtype, block)
    bias = None if bias is None else bias.to(device)
    y = bsr_linear(x.to(device), packed.to(device), bias, len(weight), activation, meta=meta)
    assert y.dtype == x.dtype and y.device.type == device and y.is_contiguous()
    return y.cpu()


def check_linear(
    dtype: str,
    shape: tuple[int, int, int],
    block: int,
    density: float,
    activation: str,
    biased: bool,
    device: str,
) -> None:
    tokens, rows, columns = shape
    weight = draw((rows, columns), density)
    x = torch.randn(tokens, columns).to(getattr(torch, dtype))
    bias = torch.randn(rows).to(x.dtype) if biased else None
    y = linear(x, weight, bias, activation, block=block, device=device)
    assert y.shape == (tokens, rows)
    if y.numel():
        assert_within(y, x, weight, bias, activation)


def check_linear_integers(dtype: str, block: int, device: str) -> None:
    for tokens in (1, 20, 70):
        weight = draw((37, 150), 0.6, integers=True)
        x = torch.randint(-1, 2, (tokens, 150)).to(getattr(torch, dtype))
        expected = x.double() @ weight.double().T
        assert expected.abs().max() < 256  # bfloat16 counts so far
        assert torch.equal(linear(x, weight, block=block, device=device).double(), expected)


def check_split_rows(dtype: str, device: str) -> None:
    """One block row of many blocks is shared by programs; the result is the same every time."""
    from sparseinfer.kernels.triton.bsr_linear import config_for, splits_for

    weight, x = draw((5, 700), 1.0), torch.randn(3, 700).to(getattr(torch, dtype))
    bias = torch.randn(5).to(x.dtype)
    _, meta = pack(weight, x.dtype, 16)
    assert splits_for(meta, config_for(3, 16, x.dtype), 3) > 1
    y = linear(x, weight, bias, "gelu", device=device)
    assert_within(y, x, weight, bias, "gelu")
    assert torch.equal(y, linear(x, weight, bias, "gelu", device=device))
    empty = linear(x, torch.zeros(5, 700), bias, "relu", device=device)
    assert torch.equal(empty, bias.relu().expand(3, 5))


def check_values(dtype: str, device: str) -> None:
    """Empty block rows, -0.0 and NaN; neighbours of a kept block in x reach nothing."""
    weight = torch.zeros(40, 50)
    weight[0, 40], weight[35, 3], weight[36, 4] = float("nan"), 2.0, float("inf")
    weight[17, 20] = -0.0  # alone in its block, which is therefore not stored
    assert pack(weight, getattr(torch, dtype), 16)[1].blocks == 2
    x, bias = torch.ones(3, 50), torch.linspace(-1, 1, 40)
    x[1, 20] = float("nan")
    x, bias = x.to(getattr(torch, dtype)), bias.to(getattr(torch, dtype))
    y = linear(x, weight, bias, "relu", device=device)
    assert y[:, 0].isnan().all() and (y[:, 36] == float("inf")).all()
    assert torch.equal(y[:, 16:32], bias[16:32].relu().expand(3, 16)), "no block, so act(bias)"
    x[2, 3] = float("nan")
    assert linear(x, weight, bias, device=device)[2, 35].isnan()


def check_layouts(dtype: str, device: str) -> None:
    from sparseinfer.kernels.triton.bsr_linear import bsr_linear

    weight, base = draw((20, 30), 0.7), torch.randn(90, 90).to(getattr(torch, dtype))
    layouts = {
        "transposed": base[:30, :6].T,
        "strided columns": base[:6, :90:3],
        "misaligned": base.reshape(-1)[1:181].reshape(6, 30),
        "expanded": base[:1, :30].expand(6, 30),
        "vector": base[0, :30],
        "three dimensions": base[:6, :60].reshape(3, 4, 30),
        "no tokens": base[:0, :30].reshape(3, 0, 30),
    }
    for name, x in layouts.items():
        y = linear(x, weight, device=device)
        assert y.shape == (*x.shape[:-1], 20), name
        if y.numel():
            assert_within(y, x, weight, None, "none")
    x = base[:6, :30]
    packed, meta = pack(weight, x.dtype, 16)
    shifted = torch.cat([torch.zeros(64, dtype=torch.uint8), packed])[64:]
    y = bsr_linear(x.to(device), shifted.to(device), None, 20, meta=meta)
    assert_within(y.cpu(), x, weight, None, "none")
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), packed]).to(device)[1:]
    with pytest.raises(ValueError, match=r"expected values at a multiple .* try packed.clone\(\)"):
        bsr_linear(x.to(device), odd, None, 20, meta=meta)


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str = "none",
    *,
    block: int = 16,
    device: str = "cpu",
) -> torch.Tensor:
    from sparseinfer.kernels.triton.bsr_conv import bsr_conv

    packed, meta = pack(weight, x.dtype, block)
    y = bsr_conv(
        x.to(device),
        packed.to(device),
        None if bias is None else bias.to(device),
        len(weight),
        weight.shape[2:],
        stride,
        padding,
        dilation,
        activation=activation,
        meta=meta,
    )
    assert y.dtype == x.dtype and y.device.type == device and y.is_contiguous()
    return y.cpu()


def under_pixels(
    x: torch.Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> torch.Tensor:
    """The inputs [pixels, K] under every output pixel of a 2-D convolution."""
    top, bottom, left, right = padding
    padded = functional.pad(x.double(), (left, right, top, bottom))
    columns = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    return columns.transpose(1, 2).flatten(0, 1).to(x.dtype)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any, Any, Any]] = {
    "1x1": ((2, 20, 3, 5), (18, 20, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "1x1 strided": ((2, 20, 5, 4), (18, 20, 1, 1), (2, 3), (0, 0, 0, 0), (1, 1)),
    "1x1 padded": ((1, 20, 2, 3), (18, 20, 1, 1), (1, 1), (1, 0, 2, 1), (1, 1)),
    "3x3": ((2, 18, 3, 4), (35, 18, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "3x2 of all": ((2, 18, 5, 4), (20, 18, 3, 2), (2, 1), (1, 2, 0, 1), (1, 2)),
    "image of one row": ((1, 17, 1, 9), (5, 17, 1, 3), (1, 2), (0, 0, 1, 1), (1, 1)),
}


def check_conv(
    dtype: str, name: str, block: int, density: float, activation: str, device: str
) -> None:
    """Against float64, and exactly on small integers, in NCHW and in channels_last."""
    shape, weights, stride, padding, dilation = CONVOLUTIONS[name]
    for integers in (False, True):
        weight = draw(weights, density, integers=integers)
        values = torch.randint(-1, 2, shape).float() if integers else torch.randn(shape)
        x = values.to(getattr(torch, dtype))
        bias = None if integers else torch.randn(len(weight)).to(x.dtype)
        kind = "none" if integers else activation
        y = conv(x, weight, bias, stride, padding, dilation, kind, block=block, device=device)
        rows = y.permute(0, 2, 3, 1).flatten(0, 2)
        columns = under_pixels(x, weight.shape[2:], stride, padding, dilation)
        assert_within(rows, columns, weight.flatten(1), bias, kind)
        if integers:
            exact = columns.double() @ weight.flatten(1).double().T
            assert exact.abs().max() < 256 and torch.equal(rows.double(), exact)
        last = x.contiguous(memory_format=torch.channels_last)
        again = conv(
            last, weight, bias, stride, padding, dilation, kind, block=block, device=device
        )
        assert torch.equal(y, again)


def check_conv_large(dtype: str, device: str) -> None:
    """More pixels than the small bucket takes, in two images."""
    weight, x = draw((17, 16, 1, 1), 1.0), torch.randn(2, 16, 23, 24).to(getattr(torch, dtype))
    y = conv(x, weight, None, (1, 1), (0,) * 4, (1, 1), device=device)
    assert_within(
        y.permute(0, 2, 3, 1).flatten(0, 2), x.permute(0, 2, 3, 1).flatten(0, 2),
        weight.flatten(1), None, "none",
    )  # fmt: skip


def check_conv1d_and_values(dtype: str, device: str) -> None:
    weight, x = draw((20, 18, 3), 0.6), torch.randn(2, 18, 11).to(getattr(torch, dtype))
    bias = torch.randn(20).to(x.dtype)
    y = conv(x, weight, bias, (2,), (1, 2), (2,), "silu", device=device)
    columns = under_pixels(x[:, :, None], (1, 3), (1, 2), (0, 0, 1, 2), (1, 2))
    assert_within(y.permute(0, 2, 1).flatten(0, 1), columns, weight.flatten(1), bias, "silu")
    assert conv(x[:0], weight, bias, (2,), (1, 2), (2,), device=device).shape == (0, 20, 5)
    empty = conv(x, torch.zeros(20, 18, 3), bias, (1,), (0, 0), (1,), "relu", device=device)
    assert torch.equal(empty, bias.relu()[None, :, None].expand(2, 20, 9))
    weight[0, 0, 1] = float("nan")
    y = conv(x, weight, bias, (1,), (0, 0), (1,), device=device)
    assert y[:, 0].isnan().all() and not y[:, 1:].isnan().any()


def check_errors() -> None:
    from sparseinfer.kernels.triton.bsr_conv import bsr_conv
    from sparseinfer.kernels.triton.bsr_linear import bsr_linear

    packed, meta = pack(torch.ones(3, 8), torch.float32, 16)
    x = torch.ones(2, 8)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        bsr_linear(x.to("meta"), packed, None, 3, meta=meta)
    with pytest.raises(RuntimeError, match="mat1 and mat2 must have the same dtype"):
        bsr_linear(x.half(), packed, None, 3, meta=meta)
    with pytest.raises(RuntimeError, match=r"cannot be multiplied \(2x7 and 8x3\)"):
        bsr_linear(x[:, :7], packed, None, 3, meta=meta)
    with pytest.raises(ValueError, match="expected activation to be one of none, relu"):
        bsr_linear(x, packed, None, 3, "mish", meta=meta)
    with pytest.raises(ValueError, match="expected a packed weight of at least"):
        bsr_linear(x, packed[:-128], None, 3, meta=meta)

    weight = torch.ones(3, 2, 3, 3)
    packed, meta = pack(weight, torch.float32, 16)
    image = torch.ones(1, 2, 5, 5)

    def refused(kind: type[Exception], match: str, **changed: Any) -> None:
        arguments: dict[str, Any] = {
            "x": image, "packed": packed, "bias": None, "out_channels": 3, "kernel_size": (3, 3),
            "stride": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "meta": meta,
        } | changed  # fmt: skip
        with pytest.raises(kind, match=match):
            bsr_conv(**arguments)

    refused(RuntimeError, "got input of size: .* try x.unsqueeze", x=image[0])
    refused(RuntimeError, "Kernel size can't be greater", x=image[..., :2])
    refused(RuntimeError, "non-positive stride", stride=(0, 1))
    refused(RuntimeError, "non-positive dilation", dilation=(1, 0))
    refused(RuntimeError, "negative padding", padding=(0, 0, -1, 0))
    refused(RuntimeError, "Expected all tensors to be on the same device", x=image.to("meta"))
    refused(RuntimeError, "should be the same; try input.to", x=image.half())
    refused(RuntimeError, "expected a packed weight of .* got", x=torch.ones(1, 3, 5, 5))
    refused(RuntimeError, "expected a packed weight of .* got", kernel_size=(3, 1))
    refused(RuntimeError, "expected a bias of torch.float32 and shape", bias=torch.ones(2))
    refused(RuntimeError, "got circular; try padding the input", padding_mode="circular")
    refused(ValueError, "expected padding_mode to be one of", padding_mode="round")
    refused(ValueError, "contiguous 1-D uint8", packed=packed[None])
    grouped, layout = formats.pack(torch.ones(4, 1, 3, 3), "bsr", 2, block=16), None
    layout = BsrMeta.from_info(formats.info(grouped))
    refused(
        RuntimeError, "expected groups=1, got groups=2: a block would read one group",
        packed=grouped, meta=layout, out_channels=4, groups=2,
    )  # fmt: skip


def check_operators(dtype: str) -> None:
    """The CUDA implementations of the operators, called with tensors on the CPU."""
    from sparseinfer.ops.run_conv import conv_cuda
    from sparseinfer.ops.run_linear import linear_cuda

    x = torch.randn(3, 40).to(getattr(torch, dtype))
    weight = draw((20, 40), 0.5)
    packed, _ = pack(weight, x.dtype, 32)
    assert torch.equal(linear_cuda(x, packed, None, 20), linear(x, weight, block=32))
    image, kernels = x.reshape(1, 3, 4, 10), draw((5, 3, 3, 3), 1.0)
    packed, _ = pack(kernels, x.dtype, 16)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1))
    y = conv_cuda(image, packed, None, 5, (3, 3), *geometry, 1, "zeros", "none", 0)
    assert torch.equal(y, conv(image, kernels, None, *geometry))


def check_examples() -> None:
    from sparseinfer.kernels.triton import bsr_conv, bsr_grid, bsr_linear

    for module in (bsr_conv, bsr_grid, bsr_linear):
        result = doctest.testmod(module, extraglobs={"torch": torch})
        assert result.attempted and not result.failed, result


def compile_linear(capability: int, dtype: str, block: int, tokens: int, partial: bool) -> None:
    """Compiles one configuration down to machine code."""
    from sparseinfer.kernels.triton.bsr_linear import bsr_linear_kernel, config_for

    config = config_for(tokens, block, getattr(torch, dtype))
    constants = {"HAS_BIAS": True, "ACTIVATION": "gelu", "W_LEFT": config.w_left}
    constants |= {"PARTIAL": partial, "B": block}
    aligned = ("M", "K", "stride_xn")
    types = _types(dtype) | ({"y_ptr": "fp32"} if partial else {})
    _compile(bsr_linear_kernel, capability, types, config, constants, ("stride_xk",), aligned)


def compile_conv(capability: int, dtype: str, block: int, pixels: int) -> None:
    """Compiles one configuration, of a channels_last input, down to machine code."""
    from sparseinfer.kernels.triton.bsr_conv import bsr_conv_kernel, config_for

    config = config_for(pixels, block, getattr(torch, dtype))
    constants = {"HAS_BIAS": True, "ACTIVATION": "relu", "KW": 3, "B": block}
    unit = ("stride_xc", "stride_h", "stride_w", "dilation_h", "dilation_w")
    aligned = ("M", "C", "stride_xb", "stride_xh", "stride_xw")
    _compile(bsr_conv_kernel, capability, _types(dtype), config, constants, unit, aligned)


def _types(dtype: str) -> dict[str, str]:
    element = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    types = {f"{name}_ptr": element for name in ("x", "values", "bias", "y")}
    return types | {"rows_ptr": "i32", "columns_ptr": "i32"}


def _compile(
    kernel: Any, capability: int, types: dict[str, str], config: Any, constants: dict[str, Any],
    unit: Sequence[str], aligned: Sequence[str],
) -> None:  # fmt: skip
    constants = constants | {
        "DOT_IN_FP32": False,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compile_one(kernel, capability, types, constants, unit, aligned, options)
