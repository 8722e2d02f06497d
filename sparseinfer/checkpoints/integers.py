"""An int8 weight in a file as its integers and a bit an element, where that is less than packed.

packed_values    int8, the non-zeros, row-major
packed_bitmask   uint8, [M, ceil(K / 8)]: bit k % 8 of byte k // 8 is element k of the row
packed_scales    float32, [M]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseinfer import formats
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.layout import IntegerParts
from sparseinfer.checkpoints.tensors import is_plain
from sparseinfer.formats.handles import peek
from sparseinfer.quantize.weights import check_scales

__all__ = ["SUFFIXES", "integers_of", "with_packed"]

SUFFIXES = ("_values", "_bitmask", "_scales")
"""What follows the name of the packed weight in those of its parts."""

_DTYPES = torch.int8, torch.uint8, torch.float32


def integers_of(packed: Tensor) -> tuple[list[Tensor], IntegerParts] | None:
    """The parts of a packed weight that is smaller so; None where it is not, or would differ then.

    Example:
        >>> from sparseinfer import pack
        >>> weight = torch.zeros(16, 60)
        >>> weight[:, ::5] = 1
        >>> parts, row = integers_of(pack(weight, weights="int8"))
        >>> [part.numel() for part in parts], row.shape
        ([192, 128, 16], (16, 60))
    """
    handle = peek(packed)
    info = handle.info
    if not handle.is_int8 or info["params"].get("g") != 1:
        return None
    rows, columns = handle.shape[0], math.prod(handle.shape[1:])
    if info["nnz"] + rows * (-(-columns // 8) + 4) >= packed.numel():
        return None
    start = info["sections"]["scales"]
    scales = packed[start : start + 4 * rows].cpu().clone().view(torch.float32)
    values = torch.round(handle.unpack(packed).cpu().view(rows, columns) / scales[:, None])
    kept = values != 0
    bits = np.packbits(kept.numpy(), axis=-1, bitorder="little")
    parts = [values[kept].to(torch.int8), torch.from_numpy(bits), scales]
    row = IntegerParts(handle.shape, info["groups"])
    return (parts, row) if torch.equal(_packed(parts, row), packed.cpu()) else None


def with_packed(entries: Mapping[str, Any], rows: Mapping[str, IntegerParts]) -> dict[str, Any]:
    """The entries, with the packed weights that the parts among them make, by the names of `rows`.

    Raises:
        CheckpointError: a part is missing, or they do not fit together.

    Example:
        >>> with_packed({"fc.bias": 3}, {})
        {'fc.bias': 3}
    """
    found = dict(entries)
    for name, row in rows.items():
        parts = [found.pop(f"{name}{suffix}", None) for suffix in SUFFIXES]
        if name in found:
            raise _damaged(name, "one weight of this name", "two")
        try:
            _check(name, parts, row)
            found[name] = _packed(parts, row)
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{name}: {error}") from error
    return found


def _check(name: str, parts: list[Any], row: IntegerParts) -> None:
    for suffix, part, dtype in zip(SUFFIXES, parts, _DTYPES, strict=True):
        if not isinstance(part, Tensor) or not is_plain(part) or part.dtype is not dtype:
            got = part.dtype if isinstance(part, Tensor) else "none"
            raise _damaged(name, f"a dense {dtype} tensor {name}{suffix}", str(got))
    if not 2 <= len(row.shape) <= 4 or min(row.shape) < 1:
        raise _damaged(name, "a shape of two to four sizes", str(list(row.shape)))
    if not 1 <= row.groups <= row.shape[0]:
        raise _damaged(name, f"1 to {row.shape[0]} groups", str(row.groups))
    rows, columns = row.shape[0], math.prod(row.shape[1:])
    values, bits, scales = parts
    if tuple(bits.shape) != (rows, -(-columns // 8)) or tuple(scales.shape) != (rows,):
        got = f"{[*bits.shape]} and {[*scales.shape]}"
        raise _damaged(name, f"bits and scales of a weight {list(row.shape)}", got)
    check_scales(scales, rows)
    kept = _kept(bits)
    if kept[:, columns:].any() or tuple(values.shape) != (int(np.count_nonzero(kept)),):
        raise _damaged(name, "as many values as bits, and none behind a row", f"{[*values.shape]}")


def _kept(bits: Tensor) -> np.ndarray:
    unpacked = np.unpackbits(bits.cpu().contiguous().numpy(), axis=-1, bitorder="little")
    return unpacked.astype(bool)


def _packed(parts: list[Tensor], row: IntegerParts) -> Tensor:
    values, bits, scales = (part.cpu() for part in parts)
    rows, columns = row.shape[0], math.prod(row.shape[1:])
    dense = torch.zeros(rows, columns)
    dense[torch.from_numpy(_kept(bits)[:, :columns])] = values.float()
    dense *= scales[:, None]
    return formats.pack(
        dense.view(row.shape), "panel", row.groups, weights="int8", scales=scales, g=1
    )


def _damaged(name: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{name}: expected {expected}, got {got}; try another copy of the file")
