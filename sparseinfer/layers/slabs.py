"""How a large transposed convolution is cut, so that its phases are never all in memory."""

from __future__ import annotations

import itertools
from typing import NamedTuple

__all__ = ["SLAB_FLOATS", "Slab", "slabs_of"]

SLAB_FLOATS = 1 << 20
"""Phases of so many values a thread are computed at a time: torch holds them twice meanwhile."""


class Slab(NamedTuple):
    """Outputs along the first axis that are computed together, and what of x they read."""

    images: slice
    first: int
    outputs: int
    start: int
    inputs: int
    ends: tuple[int, int]


def slabs_of(
    batch: int, inputs: int, rows: int, row_floats: int, taps: int, before: int, stride: int,
    threads: int,
) -> list[Slab]:  # fmt: skip
    """Cut `batch` images of `inputs` rows into slabs of at most `SLAB_FLOATS` phases a thread, or
    of one row. More threads take larger slabs, for each slab makes all of them meet.

    A phase has `rows` output rows, all phases together `row_floats` values a row; output row r
    reads `taps` input rows from r - `before` on, and gives `stride` rows of the result. Empty where
    some slab would read nothing but padding.

    Example:
        >>> slab = slabs_of(1, 8, 9, SLAB_FLOATS, 2, 1, 4, 1)[0]
        >>> slab.outputs, slab.inputs, slab.ends
        (4, 1, (1, 0))
    """
    floats, most = batch * rows * row_floats, threads * SLAB_FLOATS
    groups = min(batch, -(-floats // most))
    cuts = min(rows, -(-floats // (groups * most)))
    slabs = []
    for group, cut in itertools.product(range(groups), range(cuts)):
        images = slice(batch * group // groups, batch * (group + 1) // groups)
        first, last = rows * cut // cuts, rows * (cut + 1) // cuts
        low, high = first - before, last - before + taps - 1
        start, end = max(low, 0), min(high, inputs)
        if start >= end:
            return []
        ends = (start - low, high - end)
        outputs = (last - first) * stride
        slabs.append(Slab(images, first * stride, outputs, start, end - start, ends))
    return slabs
