"""Which weights of a checkpoint a recipe prunes: one mask a tensor, one tensor in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.prune.select import find_cut
from sparseinfer.prune.structures import NM, Structure, parse_structure

if TYPE_CHECKING:
    from sparseinfer.checkpoints.prune import Recipe

__all__ = ["looks", "masks", "structure_of"]


def looks(tensors: list[Tensor], recipe: Recipe) -> int:
    """How often tensors are looked at: what the bar counts."""
    once = recipe.method == "threshold" or isinstance(structure_of(recipe), NM)
    wide = recipe.method == "random" or any(t.dtype is torch.float64 for t in tensors)
    return len(tensors) * (1 if once else 6 if wide else 4)


def masks(tensors: list[Tensor], recipe: Recipe, ticks: Iterator[int]) -> Iterator[Tensor]:
    """For each tensor the mask of what is pruned; `ticks` is advanced at each look at a tensor."""
    structure = structure_of(recipe)
    if recipe.method == "threshold":
        for tensor in tensors:
            next(ticks)
            # In the weight's own precision: a float32 weight written as 0.1 is pruned at 0.1.
            yield tensor.abs() <= torch.tensor(recipe.amount, dtype=tensor.dtype)
        return
    magnitudes = _Magnitudes(tensors, recipe, ticks)
    if isinstance(structure, NM):
        for magnitude in magnitudes:
            held = structure.alive(torch.ones_like(magnitude, dtype=torch.bool))
            kept = structure.keep(structure.reduce(magnitude), held)
            yield ~structure.expand(kept, magnitude.shape)
        return
    scores = _Lazy(magnitudes, structure.reduce)
    groups = [[index] for index in range(len(tensors))]
    if recipe.scope == "global":
        groups = [list(range(len(tensors)))]
    for group in groups:
        members = _Lazy(group, scores.__getitem__)
        units = sum(_units(structure, tensors[index].shape) for index in group)
        weights = sum(tensors[index].numel() for index in group)
        cut = find_cut(members, _count(recipe.amount, units, weights))
        for index, mask in zip(group, cut.apply(members), strict=True):
            yield structure.expand(mask, tensors[index].shape)


def structure_of(recipe: Recipe) -> Structure:
    try:
        return parse_structure(recipe.structure)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _units(structure: Structure, shape: torch.Size) -> int:
    return structure.reduce(torch.empty(shape, device="meta")).numel()


class _Lazy(Sequence[Tensor]):
    """Items computed when they are asked for, so that one at a time is in memory."""

    def __init__(self, items: Sequence[Any], compute: Callable[[Any], Tensor]) -> None:
        self.items, self.compute = items, compute

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.compute(self.items[index])


class _Magnitudes(_Lazy):
    """|w| of each tensor; for `random`, numbers that depend on the seed and the place alone."""

    def __init__(self, tensors: list[Tensor], recipe: Recipe, ticks: Iterator[int]) -> None:
        super().__init__(list(enumerate(tensors)), self._magnitude)
        self.recipe, self.ticks = recipe, ticks

    def _magnitude(self, item: tuple[int, Tensor]) -> Tensor:
        index, tensor = item
        next(self.ticks)
        if self.recipe.method == "magnitude":
            # A half keeps its value in float32, and sums over a block do not overflow there.
            return (tensor if tensor.dtype is torch.float64 else tensor.float()).abs()
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + index)
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        # Zeros that are there go first, so an amount is one of all weights for every method.
        return drawn.to(tensor.device).masked_fill_(tensor == 0, 0)


def _count(amount: float | int | None, units: int, weights: int) -> int:
    assert amount is not None
    if isinstance(amount, float):
        return round(amount * units)
    return round(amount * units / weights)
