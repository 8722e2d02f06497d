"""The constants of a model as one block of bytes, and as the C that points into it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparseinfer.export.c.records import Packed

__all__ = ["ALIGN", "Block", "float_text", "weight_fields"]

ALIGN = 16
"""Of the block and of everything in it."""


@dataclass
class Block:
    """Bytes that the program reads in place. What is put in twice is there once.

    Example:
        >>> block = Block("net")
        >>> block.put(b"abc", "int8_t"), block.put(b"def", "int8_t"), block.put(b"", "int8_t")
        ('NET_AT(int8_t, 0)', 'NET_AT(int8_t, 16)', '0')
        >>> len(block.data)
        19
    """

    name: str
    data: bytearray = field(default_factory=bytearray)
    known: dict[bytes, int] = field(default_factory=dict)

    def put(self, content: bytes, type: str) -> str:
        """Where the content is, as a pointer of that type; NULL for none."""
        if not content:
            return "0"
        if content not in self.known:
            self.data += bytes(-len(self.data) % ALIGN)
            self.known[content] = len(self.data)
            self.data += content
        return f"{self.name.upper()}_AT({type}, {self.known[content]})"


def float_text(value: float | np.floating[Any]) -> str:
    """A float32 in C, to the last bit.

    Example:
        >>> float_text(0.5), float_text(-0.1)
        ('0x1p-1f', '-0x1.99999ap-4f')
    """
    whole = float(np.float32(value)).hex()
    return re.sub(r"\.?0+p", "p", whole) + "f"


def weight_fields(packed: Packed, block: Block) -> dict[str, str]:
    """`struct weight` of weight.h."""
    sections = packed.sections
    value = "int8_t" if packed.value_type == "int8" else "float"
    return {
        "panel": block.put(sections["panel"], "struct panel"),
        "order": block.put(sections["order"], "uint32_t"),
        "index": block.put(sections["index"], "uint16_t"),
        "value": block.put(sections["value"], value),
        "panels": str(packed.panels),
        "panels_per_group": str(packed.panels // packed.groups),
        "rows_per_group": str(packed.rows // packed.groups),
        "blocks": str(packed.blocks),
        "columns_per_index": "4" if packed.g == 4 else "1",
    }
