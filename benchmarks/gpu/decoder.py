"""Tokens a second of a Llama-shaped decoder, batch 1, dense against 2:4."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.contest import Build, GpuCase, contest, nbytes
from benchmarks.gpu.layers import pruned
from benchmarks.gpu.rows import GpuResults
from sparseinfer import SparseLinear


class Block(nn.Module):
    """A decoder layer as Llama has it, with a key and value cache of fixed length."""

    def __init__(self, width: int, inner: int, heads: int, past: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        size = (1, heads, past, width // heads)
        self.register_buffer("keys", torch.randn(size))
        self.register_buffer("values", torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        """One token `[1, 1, width]`; its key and value take the last place of the cache."""
        h: Any = self.before(x)
        q, k, v = (
            f(h).view(1, 1, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        keys, values = self.keys, self.values
        assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        keys[:, :, -1:], values[:, :, -1:] = k, v
        attended = F.scaled_dot_product_attention(q, keys, values)
        x = x + self.o(attended.transpose(1, 2).reshape(x.shape))
        h = self.between(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def build(width: int, inner: int, heads: int, layers: int, past: int) -> nn.Sequential:
    """A stack of blocks whose linear layers are 2:4."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width, inner, heads, past) for _ in range(layers)))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = pruned(module.weight.data, "2:4", 0.5)
    return model.requires_grad_(False).eval()


def sparse_copy(model: nn.Module) -> nn.Module:
    """The model with every linear layer in the nm format."""
    other = copy.deepcopy(model)
    for block in other.modules():
        for name, child in list(block.named_children()):
            if isinstance(child, nn.Linear):
                setattr(block, name, SparseLinear.from_dense(child, "nm", n=2, m=4))
    return other


def run(device: torch.device, results: GpuResults, *, tiny: bool) -> None:
    """Time one token of 8 layers of a Llama 7B, dense and 2:4, as replays of CUDA graphs."""
    width, inner, heads, layers, past = (32, 64, 4, 1, 8) if tiny else (4096, 11008, 32, 8, 512)
    dtype = torch.float32 if tiny else torch.bfloat16
    with torch.device(device):
        dense = build(width, inner, heads, layers, past).to(dtype)
        x = torch.randn(1, 1, width, dtype=dtype)

    def of(make: Callable[[], nn.Module]) -> Build:
        def built() -> tuple[Callable[[], object], int]:
            model = make()
            return lambda: model(x), nbytes(*model.parameters(), *model.buffers())

        return built

    case = GpuCase(
        "decoder", f"{layers} layers of width {width}, batch 1, {past} tokens of cache", width,
        width, 1, "2:4", 0.5, 2 * nbytes(x),
    )  # fmt: skip
    sides = [("dense", of(lambda: dense)), ("nm", of(lambda: sparse_copy(dense)))]
    with torch.no_grad():
        contest(case, sides, device, results, tokens=1)
