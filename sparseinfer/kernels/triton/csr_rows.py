"""The rows of a csr weight as the GPU kernel reads them: narrow, aligned, sorted, cut evenly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparseinfer.formats.handles import DEFAULT_SMS
from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton import float_limits
from sparseinfer.kernels.triton.arguments import require_format
from sparseinfer.kernels.triton.derived import Derived

__all__ = ["ALIGN", "SLICE_ROWS", "CsrMeta", "CsrRows", "csr_kept", "csr_limits", "csr_rows"]

ALIGN = 8
"""Entries that a row's storage is a multiple of: sixteen bytes of half-precision values."""

SLICE_ROWS = 8
"""Rows that one program takes; sorted by length, they are nearly equally long."""

NARROW_COLUMNS = 1 << 16
"""Up to so many columns an index takes two bytes."""


@dataclass(frozen=True)
class CsrMeta:
    """Where a `csr` packed buffer keeps its sections, and what they hold.

    `rows`, `columns` and `values` are byte offsets of u32 [M + 1], u32 [nnz] and float32 [nnz];
    M = `out_features`, K = `in_features`. `sms`, the device's multiprocessors, decides with the
    shape how long rows are cut; `derived` keeps the `CsrRows` of the one buffer that this
    describes, for every type of x.
    """

    out_features: int
    in_features: int
    nnz: int
    rows: int
    columns: int
    values: int
    sms: int = DEFAULT_SMS
    derived: Derived = field(default_factory=Derived, init=False, repr=False, compare=False)

    @classmethod
    def from_info(cls, info: Mapping[str, Any], sms: int = DEFAULT_SMS) -> CsrMeta:
        """Read the description from what `sparseinfer.formats.info` returns for a `csr` buffer.

        Raises:
            ValueError: the buffer is not in the `csr` format.

        Example:
            >>> from sparseinfer import formats
            >>> CsrMeta.from_info(formats.info(formats.pack(torch.eye(8), "csr"))).nnz
            8
        """
        require_format(info, "csr")
        at = info["sections"]
        return cls(
            out_features=int(info["m"]), in_features=int(info["k"]), nnz=int(info["nnz"]),
            rows=int(at["rows"]), columns=int(at["columns"]), values=int(at["values"]), sms=sms,
        )  # fmt: skip


def csr_limits(problem: Problem) -> list[str]:
    """Why the `csr` rows cannot run such a problem; empty when they can.

    Example:
        >>> csr_limits(Problem("linear", "csr", torch.device("cuda"), torch.float64))[-1]
        'expected input of float32, float16 or bfloat16, got float64; try input.float()'
    """
    return float_limits(problem)


def csr_kept(numel: int, nnz: int, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of `CsrRows`: narrow columns, and values in the type of x.

    Example:
        >>> csr_kept(64, 8, torch.float16, tokens=1)
        32
    """
    return nnz * (2 + dtype.itemsize)


@dataclass(frozen=True)
class CsrRows:
    """What the kernel reads: entries row after row, and the work of each program.

    `columns` (int32, or int16 holding 16 unsigned bits) and `values` are [entries]; every row
    begins at a multiple of `ALIGN` entries and is filled up to one with zeros, which the kernel
    skips. Rows are taken longest first: `order` int32 [slices * SLICE_ROWS] is the output row, M
    where there is none; `starts` and `lengths` int32, of the same shape, are in `ALIGN`s. A program
    takes the entries `first` to `last` (in `ALIGN`s) of every row of a slice: `units` int32
    [count][4] is slice, first, last and the number of units of that slice. Slices that are cut in
    more than one come first: `cuts` int32 [cut slices][2] is the first unit and their number.
    """

    columns: Tensor
    values: Tensor
    order: Tensor
    starts: Tensor
    lengths: Tensor
    units: Tensor
    cuts: Tensor
    cut_units: int


def csr_rows(
    rows: Tensor, columns: Tensor, values: Tensor, k: int, dtype: torch.dtype, sms: int
) -> CsrRows:
    """Lay out the rows of a csr weight, on its device: int32 `rows` [M + 1] (bits of u32),
    `columns` int32 [nnz], `values` float32 [nnz], rounded to `dtype`.

    Source: rows sorted by length and cut in slices follow SELL-C-sigma (Kreutzer et al., 2014);
    the even cut of long rows, merge-based SpMV (Merrill and Garland, 2016).

    Example:
        >>> csr = torch.eye(2).to_sparse_csr()
        >>> made = csr_rows(csr.crow_indices(), csr.col_indices(), csr.values(), 2,
        ...                 torch.float16, sms=132)
        >>> made.columns.numel(), made.order.tolist()
        (16, [0, 1, 2, 2, 2, 2, 2, 2])
    """
    device = values.device
    bounds = rows.to(torch.int64) & 0xFFFFFFFF
    counts = bounds.diff()
    m = counts.numel()
    lengths = (counts + ALIGN - 1) // ALIGN
    ends = lengths.cumsum(0)
    starts = ends - lengths
    entries = int(ends[-1]) * ALIGN if m else 0
    row_of = torch.repeat_interleave(
        torch.arange(m, device=device), counts, output_size=len(values)
    )
    at = torch.arange(len(values), device=device) - bounds[row_of] + starts[row_of] * ALIGN
    narrow = torch.int16 if k <= NARROW_COLUMNS else torch.int32
    padded_columns = torch.zeros(entries, dtype=narrow, device=device)
    padded_columns[at] = columns.to(narrow)  # wraps: the kernel takes the bits as unsigned
    padded_values = torch.zeros(entries, dtype=dtype, device=device)
    padded_values[at] = values.to(dtype)

    sorted_lengths, order = lengths.sort(descending=True, stable=True)
    slices = -(-m // SLICE_ROWS)
    empty = slices * SLICE_ROWS - m
    order = torch.nn.functional.pad(order, (0, empty), value=m)
    starts = torch.nn.functional.pad(starts[order[:m]], (0, empty))
    sorted_lengths = torch.nn.functional.pad(sorted_lengths, (0, empty))
    units, cuts, cut_units = _cut(sorted_lengths[::SLICE_ROWS], sms)
    return CsrRows(
        columns=padded_columns,
        values=padded_values,
        order=order.to(torch.int32),
        starts=starts.to(torch.int32),
        lengths=sorted_lengths.to(torch.int32),
        units=units.to(torch.int32),
        cuts=cuts.to(torch.int32),
        cut_units=cut_units,
    )


SHORTEST_CUT = 64
"""A row is not cut into pieces of less than so many `ALIGN`s of entries."""


def _cut(longest: Tensor, sms: int) -> tuple[Tensor, Tensor, int]:
    """`units`, `cuts` and how many units belong to cut slices, whose longest rows are `longest`.

    A slice is cut where it is half as long again as an even share for two programs on every
    multiprocessor.
    """
    device = longest.device
    share = max(-(-int(longest.sum()) // max(2 * sms, 1)), SHORTEST_CUT)
    pieces = torch.where(2 * longest > 3 * share, (longest + share - 1) // share, 1)
    each = (longest + pieces - 1) // pieces
    begin = pieces.cumsum(0) - pieces
    of = torch.repeat_interleave(torch.arange(len(longest), device=device), pieces)
    first = (torch.arange(len(of), device=device) - begin[of]) * each[of]
    last = torch.minimum(first + each[of], longest[of])
    cut = pieces > 1  # of descending lengths: the first slices
    units = torch.stack([of, first, last, pieces[of]], dim=1)
    return units, torch.stack([begin, pieces], dim=1)[cut], int(pieces[cut].sum())
