"""Weights of other formats and types as plain C reads them: in panels, or by rows."""

from __future__ import annotations

import numpy as np
import torch

from sparseinfer.export.c.records import Packed, read_packed
from sparseinfer.formats.packed import pack, unpack

__all__ = ["MOST_COLUMNS", "plain_packed"]

MOST_COLUMNS = 65535
"""Of a panel, whose indices are of 16 bits."""


def plain_packed(blob: bytes) -> Packed:
    """A packed weight as it is, or as another one of the same values in float32.

    Values of float16 and bfloat16 become float32, which is what kernels compute with. Pairs of
    bfloat16, whose kernels round what they multiply, stay as they are. Linear weights of more
    columns than a panel has become rows of columns and values, of format csr.

    Example:
        >>> from sparseinfer.formats.packed import pack
        >>> packed = plain_packed(bytes(pack(torch.eye(16, 32), "bsr", block=16).numpy()))
        >>> packed.format, packed.value_type, packed.rows
        ('panel', 'float32', 16)
    """
    packed = read_packed(blob)
    if packed.in_panels and (packed.value_type in ("float32", "int8") or packed.g == 2):
        return packed
    dense = unpack(torch.frombuffer(bytearray(blob), dtype=torch.uint8))
    if packed.columns <= MOST_COLUMNS:
        return read_packed(bytes(pack(dense, "panel", packed.groups).numpy()))
    if len(packed.shape) != 2:
        return packed
    rows, columns = np.nonzero(dense.numpy())
    start = np.searchsorted(rows, np.arange(packed.rows + 1))
    sections = {
        "order": b"", "start": start.astype(np.uint32).tobytes(),
        "column": columns.astype(np.uint32).tobytes(),
        "value": dense.numpy()[rows, columns].tobytes(),
    }  # fmt: skip
    return Packed("csr", "float32", packed.shape, 1, 0, 0, 0, sections)
