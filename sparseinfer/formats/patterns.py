"""Which structure the zeros of a pruned weight have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

_NM_GROUPS = (4, 8, 16)
"""Lengths of the groups looked for, each twice the one before."""
_BLOCKS = (
    *((edge, edge) for edge in (128, 64, 32, 16, 8, 4)),
    (16, 1), (1, 16), (8, 1), (1, 8), (4, 1), (1, 4),
)  # fmt: skip
"""Blocks looked for, output rows x input columns, largest first."""

_FIRST_ROWS = 256
"""Rows that rule out almost every block, in a fraction of the time that all rows take."""

_FULL_GROUPS = 0.9
"""Share of the groups that must hold exactly n non-zeros for a weight to be called n:m: few random
masks reach it, and a mask made by n:m pruning misses it only where a kept weight is exactly 0."""


@dataclass(frozen=True)
class Pattern:
    """The structure of a weight's zeros.

    `kind` is `dense` (no zero), `zero` (nothing else), `channel` (whole output rows or input
    channels are zero and the rest is full), `block` (`sizes` = output rows x input columns), `n:m`
    (`sizes` = n, m: at most n non-zeros in every m consecutive input channels, those of one kernel
    position in a convolution) or `unstructured`. Whatever it is, `zero_rows` output rows and
    `zero_channels` input channels hold nothing but zeros.

    Example:
        >>> str(Pattern("n:m", (2, 4))), str(Pattern("block", (4, 1)))
        ('2:4', 'block 4x1')
        >>> str(Pattern("channel", zero_rows=3, zero_channels=1))
        'channel: 3 rows, 1 input'
    """

    kind: str
    sizes: tuple[int, int] = (0, 0)
    zero_rows: int = 0
    zero_channels: int = 0

    def __str__(self) -> str:
        if self.kind == "n:m":
            return f"{self.sizes[0]}:{self.sizes[1]}"
        if self.kind == "block":
            return f"block {self.sizes[0]}x{self.sizes[1]}"
        if self.kind == "channel":
            counts = ((self.zero_rows, "row"), (self.zero_channels, "input"))
            named = (f"{count} {word}{'s'[: count > 1]}" for count, word in counts if count)
            return f"channel: {', '.join(named)}"
        return self.kind


def detect_pattern(weight: Tensor) -> Pattern:
    """Find the structure of a weight's zeros.

    `weight` is `[M, K]`, `[M, C/groups, kw]` or `[M, C/groups, kh, kw]`. The first that fits is
    named, in the order dense, zero, channel, block (largest first), n:m (smallest m first),
    unstructured.

    Raises:
        ValueError: the weight has fewer than two dimensions.

    Example:
        >>> str(detect_pattern(torch.tensor([[1.0, 0, 2, 0], [0, 3, 4, 0]])))
        '2:4'
    """
    if weight.dim() < 2:
        raise ValueError(
            f"expected a weight of 2 to 4 dimensions, got {weight.dim()}; try weight.unsqueeze(0)"
        )
    kept = weight.detach() != 0
    nnz = int(torch.count_nonzero(kept))
    if nnz == kept.numel():
        return Pattern("dense")
    rows = kept.flatten(1)
    # As bytes: the greatest of them is found a hundred times as fast as any of the booleans.
    used_rows = rows.view(torch.uint8).amax(dim=1)
    used_channels = rows.view(torch.uint8).amax(dim=0).view(kept.shape[1], -1).amax(dim=1)
    used = int(torch.count_nonzero(used_rows)), int(torch.count_nonzero(used_channels))
    found = partial(
        Pattern,
        zero_rows=len(used_rows) - used[0],
        zero_channels=len(used_channels) - used[1],
    )
    if nnz == 0:
        return found("zero")
    taps = kept.shape[2:].numel()
    if nnz == used[0] * used[1] * taps:
        return found("channel")
    for sizes in _BLOCKS:
        first = rows[: min(8 * sizes[0], _FIRST_ROWS)]
        if _is_blocked(first, *sizes) and _is_blocked(rows, *sizes):
            return found("block", sizes)
    nm = _nm(kept.movedim(1, -1).flatten(0, -2))
    return found("unstructured") if nm is None else found("n:m", nm)


def _is_blocked(kept: Tensor, height: int, width: int) -> bool:
    """Whether every aligned height x width block (cut at the edges) is either full or empty."""
    m, k = kept.shape
    if m < height or k < width:
        return False
    whole_m, whole_k = m - m % height, k - k % width
    blocks = kept[:whole_m, :whole_k].reshape(m // height, height, k // width, width)
    if not torch.equal(blocks.any(dim=3).any(dim=1), blocks.all(dim=3).all(dim=1)):
        return False
    for edge, dim in ((kept[whole_m:, :whole_k], 0), (kept[:whole_m, whole_k:], 1)):
        if edge.numel() and not torch.equal(edge.any(dim=dim), edge.all(dim=dim)):
            return False
    return True


def _nm(kept: Tensor) -> tuple[int, int] | None:
    """The least m whose groups along the rows hold n at most, a last shorter one too."""
    counts = kept
    for m in _NM_GROUPS:
        groups = kept.shape[1] // m
        if groups == 0:
            return None
        counts = _fours(kept) if m == 4 else _pairs(counts[:, : 2 * groups])
        n = int(counts.max())
        full = int(torch.count_nonzero(counts == n))
        if n <= m // 2 and full >= _FULL_GROUPS * counts.numel():
            rest = kept[:, groups * m :].sum(dim=1)
            if rest.numel() == 0 or int(rest.max()) <= n:
                return n, m
    return None


def _fours(kept: Tensor) -> Tensor:
    """How many of every four columns are kept; adding booleans along a dimension is 30x slower.

    Four booleans are the bytes of one integer, whose product with 0x01010101 has their sum on top.
    """
    # A clone has plain strides; of one row, torch calls any stride contiguous, and views by it.
    whole = kept[:, : kept.shape[1] // 4 * 4].clone(memory_format=torch.contiguous_format)
    return (whole.view(torch.int32) * 0x01010101) >> 24


def _pairs(counts: Tensor) -> Tensor:
    return counts[:, 0::2] + counts[:, 1::2]
