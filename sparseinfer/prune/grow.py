"""Takes units out of masks: scores them, ranks them together, and prunes the smallest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sparseinfer.prune.criteria import Criterion
from sparseinfer.prune.rank import prune_smallest, prune_smallest_by_row, require_finite
from sparseinfer.prune.structures import NM, Structure
from sparseinfer.prune.targets import Target

__all__ = ["Count", "grow"]

Count = Callable[[int, int], int]
"""How many units to prune, from how many are alive and how many there are."""


def grow(
    group: Sequence[Target],
    masks: Mapping[str, Tensor],
    criterion: Criterion,
    structure: Structure,
    count: Count,
    *,
    by_row: bool,
) -> None:
    """Prune count(alive, all) units of the targets ranked together, in place in `masks`.

    `by_row` counts and ranks within each output row. N:M counts by itself.

    Raises:
        ValueError: a score is NaN or Inf; the message names the weight.

    Example:
        >>> from sparseinfer.prune.criteria import Magnitude
        >>> from sparseinfer.prune.structures import Unstructured
        >>> target = Target("weight", torch.nn.Linear(4, 2), "weight", ["weight"])
        >>> masks = {"weight": torch.ones(2, 4, dtype=torch.bool)}
        >>> grow([target], masks, Magnitude(), Unstructured(), lambda alive, _: 3, by_row=False)
        >>> int(masks["weight"].sum())
        5
    """
    scores, alive = [], []
    for target in group:
        score = criterion.score(target.name, target.canonical(target.weight.detach()), structure)
        require_finite(target.name, score)
        scores.append(score)
        alive.append(structure.alive(target.canonical(masks[target.name])))
    if isinstance(structure, NM):
        kept = [structure.keep(score, held) for score, held in zip(scores, alive, strict=True)]
    elif by_row:
        kept = [_by_row(score, held, count) for score, held in zip(scores, alive, strict=True)]
    else:
        total = sum(held.numel() for held in alive)
        left = sum(int(torch.count_nonzero(held)) for held in alive)
        kept = prune_smallest(scores, max(0, count(left, total)), alive)
    for target, units in zip(group, kept, strict=True):
        own = masks[target.name]
        own &= target.canonical(structure.expand(units, target.canonical(own).shape))


def _by_row(score: Tensor, held: Tensor, count: Count) -> Tensor:
    rows, flags = score.flatten(1), held.flatten(1)
    counts = [max(0, count(left, flags.shape[1])) for left in flags.sum(dim=1).tolist()]
    return prune_smallest_by_row(rows, torch.tensor(counts).to(rows.device), flags).reshape(
        held.shape
    )
