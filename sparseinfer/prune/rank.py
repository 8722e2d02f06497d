"""Masks without the smallest scores: exact counts, ties by index, little memory, nested masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparseinfer.prune.select import CHUNK, find_cut

__all__ = ["prune_smallest", "prune_smallest_by_row", "require_finite"]


def prune_smallest(
    scores: Sequence[Tensor], count: int, held: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return boolean masks (True = kept) without the `count` smallest magnitudes over all scores.

    `scores`: floating-point tensors of any shapes, strides, dtypes and devices, ranked by magnitude
    together; `held`: masks of the same shapes, whose False elements stay pruned and are neither
    ranked nor counted. Between equal magnitudes the one that comes first goes first: in the order
    of `scores`, row-major within each. 100 million float32 weights (400 MB) take 100 MB of masks
    and some ten MB besides.

    Raises:
        ValueError: a kept score is NaN, or fewer than `count` are kept.

    Example:
        >>> prune_smallest([torch.tensor([3.0, -1.0]), torch.tensor([1.0])], count=1)
        [tensor([ True, False]), tensor([True])]
    """
    masks = [
        torch.ones(score.shape, dtype=torch.bool, device=score.device)
        if held is None
        else held[i].to(score.device, copy=True).contiguous()
        for i, score in enumerate(scores)
    ]
    pieces = _Kept(scores, masks)
    cut = find_cut(pieces, count)
    # The pieces are cut through the same flags that change here: each is read before it is written.
    for (_, flags), gone in zip(pieces.pairs(), cut.apply(pieces), strict=True):
        if len(gone) == len(flags):
            torch.logical_not(gone, out=flags)
        else:
            flags.masked_scatter_(flags.clone(), ~gone)
    return masks


def prune_smallest_by_row(scores: Tensor, counts: Tensor, held: Tensor) -> Tensor:
    """Return the mask of `scores` [rows, columns] without the counts[row] smallest of each row.

    Ties go by index; `held` as in `prune_smallest`. `counts` is int64 [rows].

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
        >>> prune_smallest_by_row(scores, torch.tensor([1, 2]), torch.ones(2, 3).bool()).tolist()
        [[True, False, True], [False, False, True]]
    """
    mask = held.clone()
    rows = max(1, CHUNK // max(1, scores.shape[1]))
    places = torch.arange(scores.shape[1], device=scores.device)
    for start in range(0, scores.shape[0], rows):
        part, kept = scores[start : start + rows].abs(), held[start : start + rows]
        order = part.masked_fill(~kept, -1.0).sort(dim=1, stable=True).indices
        gone = (~kept).sum(dim=1) + counts[start : start + rows]
        mask[start : start + rows].scatter_(1, order, places >= gone[:, None])
    return mask & held


def require_finite(name: str, score: Tensor) -> None:
    """Refuse a score that has no rank.

    Raises:
        ValueError: it holds NaN or Inf; the message names the layer.

    Example:
        >>> require_finite("layer", torch.ones(2))
    """
    # Extremes tell in a tenth of the time that looking at each element takes.
    extremes = [torch.stack(torch.aminmax(part)) for part in _parts(score)]
    if not all(bool(torch.isfinite(pair).all()) for pair in extremes):
        bad = sum(int((~torch.isfinite(part)).sum()) for part in _parts(score))
        raise ValueError(
            f"expected finite weights to rank, got {bad} NaN or Inf in {name!r}, "
            "try a smaller learning rate, or leave this layer out"
        )


class _Kept(Sequence[Tensor]):
    """The scores that masks keep, in pieces made on access: nothing of their size is held."""

    def __init__(self, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self._pairs = [
            pair
            for score, mask in zip(scores, masks, strict=True)
            for pair in zip(_parts(score), _flags(score, mask), strict=True)
        ]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The pieces of scores, with the flat flags of each."""
        return self._pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        score, flags = self._pairs[index]
        flat = score.reshape(-1)
        # Picking by mask costs several times the ranking, and at first nothing is pruned.
        return flat if int(torch.count_nonzero(flags)) == len(flags) else flat[flags]


def _parts(score: Tensor) -> Sequence[Tensor]:
    """Views of a score, row-major whatever its strides, of about CHUNK elements."""
    values = score.detach()
    if values.dim() == 0 or values.is_contiguous():
        values = values.reshape(-1)
    if values.numel() == 0:
        return ()
    return values.split(max(1, CHUNK // values[:1].numel()))


def _flags(score: Tensor, mask: Tensor) -> Iterator[Tensor]:
    start = 0
    for part in _parts(score):
        yield mask.view(-1)[start : start + part.numel()]
        start += part.numel()
