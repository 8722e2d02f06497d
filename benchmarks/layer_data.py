"""One layer to measure: its data, the float64 answer, and the error any float32 answer may have."""

from __future__ import annotations

import zlib
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, ConvCase, Pattern

EPS = torch.finfo(torch.float32).eps


class WrongResultError(RuntimeError):
    """A contender's result is further from the float64 answer than rounding explains."""


def _seed(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


@lru_cache(maxsize=1)
def _pruning_order(shape: tuple[int, ...]) -> torch.Tensor:
    count = int(torch.Size(shape).numel())
    return torch.randperm(count, generator=_seed(f"order {shape}"))


@lru_cache(maxsize=2)
def make_weight(shape: tuple[int, ...], pattern: Pattern) -> torch.Tensor:
    """Return a normal random weight of ``shape`` with exactly the zeros that ``pattern`` asks for.

    Without a structure, round(sparsity * elements) weights chosen at random are zero. With n:m,
    each group of m neighbouring input channels, of one kernel position, keeps n at random. Blocks,
    rows and input channels are pruned whole, round(sparsity * count) of them at random; of both
    rows and inputs as many are kept as leave 1 - sparsity of the elements.

    Raises:
        ValueError: the input channels are not a multiple of m, or the matrix not one of blocks.
    """
    weight = torch.randn(shape, generator=_seed(f"weight {shape}"))
    weight /= (weight[0].numel()) ** 0.5
    if pattern.block is not None:
        return weight.masked_fill_(_blocks(shape, pattern.sparsity, *pattern.block) == 0, 0.0)
    if pattern.channels:
        return weight.masked_fill_(_channels(shape, pattern.sparsity, pattern.channels) == 0, 0.0)
    if pattern.n_of_m is None:
        zeros = round(pattern.sparsity * weight.numel())
        weight.view(-1)[_pruning_order(shape)[:zeros]] = 0.0
        return weight
    n, m = pattern.n_of_m
    channels = shape[1]
    if channels % m:
        raise ValueError(f"expected input channels in groups of {m}, got {channels}, try another")
    last = weight.movedim(1, -1)
    groups = last.reshape(-1, m)
    chances = torch.rand(groups.shape, generator=_seed(f"groups {shape}"))
    groups.scatter_(1, chances.argsort(dim=1)[:, n:], 0.0)
    return groups.view(last.shape).movedim(-1, 1).contiguous()


def _kept(count: int, sparsity: float) -> torch.Tensor:
    """Return ones, and zeros at round(sparsity * count) places at random."""
    kept = torch.ones(count)
    kept[_pruning_order((count,))[: round(sparsity * count)]] = 0.0
    return kept


def _blocks(shape: tuple[int, ...], sparsity: float, height: int, width: int) -> torch.Tensor:
    rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
    if rows % height or columns % width:
        raise ValueError(
            f"expected a matrix of {height}x{width} blocks, got {rows}x{columns}, try another shape"
        )
    kept = _kept(rows // height * (columns // width), sparsity).view(rows // height, -1)
    return kept.repeat_interleave(height, 0).repeat_interleave(width, 1).view(shape)


def _channels(shape: tuple[int, ...], sparsity: float, which: str) -> torch.Tensor:
    share = 1 - (1 - sparsity) ** 0.5 if which == "both" else sparsity
    mask = torch.ones(shape)
    if which != "inputs":
        mask *= _kept(shape[0], share).view(-1, *(1 for _ in shape[1:]))
    if which != "rows":
        mask *= _kept(shape[1], share).view(-1, *(1 for _ in shape[2:]))
    return mask


class LayerData:
    """Data of one layer. Linear: x[N, K] token-major; convolution: x[1, C, H, W].

    The reference is y64 = W x + b in float64 and the bound on any float32 result is
    (K + 2) * eps * (|W| |x| + |b|), the standard bound of a dot product of K terms in any order
    with twice its constant.
    """

    def __init__(self, case: Case, pattern: Pattern, *, with_bias: bool = True) -> None:
        self.case = case
        self.pattern = pattern
        self.weight = make_weight(case.weight_shape, pattern)
        generator = _seed(f"input {case.name}")
        shape = (
            (1, case.c, case.size, case.size) if isinstance(case, ConvCase) else (case.n, case.k)
        )
        self.x = torch.randn(shape, generator=generator)
        self.bias = torch.randn(case.m, generator=generator) if with_bias else None

    @property
    def nnz(self) -> int:
        """Number of non-zero weights."""
        return int(torch.count_nonzero(self.weight))

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weight."""
        return self.weight.numel() * self.weight.element_size()

    def dense(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the layer's output computed by dense PyTorch in the tensors' own type."""
        if isinstance(self.case, ConvCase):
            return F.conv2d(x, weight, bias, self.case.stride, self.case.padding)
        return F.linear(x, weight, bias)

    @cached_property
    def _reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = self.x.double(), self.weight.double()
        bias = None if self.bias is None else self.bias.double()
        answer = self.dense(x, weight, bias)
        size = self.dense(x.abs(), weight.abs(), None if bias is None else bias.abs())
        return answer, size

    def verify(self, name: str, result: torch.Tensor, unit: float = 0.0) -> None:
        """Check a float32 result of contender ``name``, in the shape dense PyTorch returns.

        ``unit`` is the unit roundoff of a narrower type, where the contender rounds to it: each of
        W and x, their sum, and the sum with b may be, four roundings in all.

        Raises:
            WrongResultError: the shape differs, or an element is beyond the bound or not a number.
        """
        answer, size = self._reference
        bound = ((self.case.k + 2) * EPS + (1 + unit) ** 4 - 1) * size
        if result.shape != answer.shape:
            raise WrongResultError(
                f"{name} on {self.case.name}: expected shape {tuple(answer.shape)}, "
                f"got {tuple(result.shape)}"
            )
        # Written so that a NaN counts as wrong.
        wrong = ~((result.double() - answer).abs() <= bound)
        if wrong.any():
            where = tuple(int(i) for i in wrong.nonzero()[0])
            raise WrongResultError(
                f"{name} on {self.case.name}, {self.pattern.name} {self.pattern.sparsity:g}: "
                f"expected {answer[where].item():.8g} within {bound[where].item():.2g} at {where}, "
                f"got {result[where].item():.8g}; {int(wrong.sum())} of {wrong.numel()} are wrong"
            )
