"""Linear layers of language models, at every sparsity and N, against cuBLAS and its kin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.contest import Budget, Build, GpuCase, contest, nbytes
from benchmarks.gpu.rows import GpuResults, Missing
from sparseinfer import pack
from sparseinfer.ops.run_linear import linear_cuda

SHAPES = ((4096, 4096), (11008, 4096), (14336, 4096), (28672, 8192))
TOKENS = (1, 16, 8, 64, 4, 2, 256, 1024, 4096)
"""N, the most telling first."""
SPARSITIES = (("2:4", 0.5), ("random", 0.9), ("block64", 0.9), ("random", 0.8), ("block64", 0.8))
TINY_SHAPES = ((64, 64),)
TINY_TOKENS = (1, 8)

FORMATS = {"2:4": "nm", "random": "csr", "block64": "bsr", "block32": "bsr"}


def pruned(weight: Tensor, pattern: str, sparsity: float) -> Tensor:
    """The weight with zeros: `2:4`, `random`, or `blockS` of whole S x S blocks.

    Raises:
        ValueError: there is no such pattern.
    """
    m, k = weight.shape
    if pattern == "2:4":
        groups = -(-k // 4)
        drawn = torch.rand(m, groups, 4, device=weight.device)
        kept = (drawn.argsort(-1).argsort(-1) < 2).view(m, 4 * groups)[:, :k]
    elif pattern == "random":
        kept = torch.rand(m, k, device=weight.device) >= sparsity
    elif pattern.startswith("block"):
        size = int(pattern.removeprefix("block"))
        coarse = torch.rand(-(-m // size), -(-k // size), device=weight.device) >= sparsity
        kept = coarse.repeat_interleave(size, 0).repeat_interleave(size, 1)[:m, :k]
    else:
        raise ValueError(f"expected a pattern of {', '.join(FORMATS)}, got {pattern!r}; try 2:4")
    return weight * kept


def options(pattern: str) -> dict[str, int]:
    """What a conversion would tell `pack` of a weight with this pattern.

    Example:
        >>> options("block32"), options("2:4")
        ({'block': 32}, {})
    """
    return {"block": int(pattern.removeprefix("block"))} if pattern.startswith("block") else {}


@dataclass
class Weight:
    """A pruned weight, and what was packed from it once: packing takes longer than timing."""

    dense: Tensor
    pattern: str
    packed: Tensor | None = None


def contenders(weight: Weight, x: Tensor) -> list[tuple[str, Build]]:
    """The dense layer first, ours, then what torch has for such a weight."""
    held, pattern, format = weight.dense, weight.pattern, FORMATS[weight.pattern]
    firsts = {"dense", format}

    def copied(name: str, tensor: Tensor) -> Tensor:
        """The tensor itself for the first of the copies."""
        if name in firsts:
            firsts.remove(name)
            return tensor
        return tensor.clone()

    def dense() -> tuple[Callable[[], object], int]:
        own = copied("dense", held)
        return lambda: F.linear(x, own), nbytes(own)

    def ours() -> tuple[Callable[[], object], int]:
        if weight.packed is None:
            weight.packed = pack(held, format, **options(pattern)).to(held.device)
        own = copied(format, weight.packed)
        return lambda: linear_cuda(x, own, None, len(held)), nbytes(own)

    def semi_structured() -> tuple[Callable[[], object], int]:
        own = torch.sparse.to_sparse_semi_structured(held)
        # Half of the values and two bits of each four.
        return lambda: F.linear(x, own), held.numel() * (8 * held.element_size() + 2) // 16

    def torch_bsr() -> tuple[Callable[[], object], int]:
        own = held.to_sparse_bsr((64, 64))
        parts = (own.values(), own.col_indices(), own.crow_indices())
        return lambda: F.linear(x, own), nbytes(*parts)

    def torch_csr() -> tuple[Callable[[], object], int]:
        own, columns = held.to_sparse_csr(), x.t().contiguous()
        parts = (own.values(), own.col_indices(), own.crow_indices())
        return lambda: own @ columns, nbytes(*parts)

    others = {
        "2:4": ("cuSPARSELt", semi_structured),
        "random": ("cuSPARSE", torch_csr),
        "block64": ("torch BSR", torch_bsr),
    }
    return [("dense", dense), (format, ours), others[pattern]]


def run(
    device: torch.device, results: GpuResults, budget: Budget, *, tiny: bool,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> None:  # fmt: skip
    """Time every layer, the most telling cases first; what there is no time for is named."""
    dtype = torch.float32 if tiny else torch.bfloat16
    tokens = TINY_TOKENS if tiny else TOKENS
    weights: dict[tuple[int, int, str, float], Weight] = {}
    every = itertools.product(tokens, SPARSITIES, shapes or (TINY_SHAPES if tiny else SHAPES))
    for n, (pattern, sparsity), (m, k) in every:
        name = f"{m}x{k} {pattern} {sparsity:.0%} N={n}"
        case = GpuCase(
            "layers", name, m, k, n, pattern, sparsity, (m + k) * n * dtype.itemsize
        )  # fmt: skip

        def work(case: GpuCase = case) -> None:
            key = case.m, case.k, case.pattern, case.sparsity
            if key not in weights:
                torch.manual_seed(0)
                drawn = torch.randn(case.m, case.k, device=device)
                weights[key] = Weight(pruned(drawn, *key[2:]).to(dtype), case.pattern)
            x = torch.randn(case.n, case.k, device=device, dtype=dtype)
            contest(case, contenders(weights[key], x), device, results)

        if not budget.run(work):
            results.missing.append(Missing("layers", name, "all", "no time left"))
