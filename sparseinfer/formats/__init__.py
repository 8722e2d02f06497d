"""Packed weights as bytes: pack, unpack and look into the native formats.

A packed weight is one contiguous `uint8` tensor, in memory as it is on disk. The layouts are
written down byte by byte in `csrc/formats`.
"""

from sparseinfer.formats.bsr import BLOCKS
from sparseinfer.formats.memory import check_buffer, host_bytes, is_own
from sparseinfer.formats.packed import (
    TARGETS,
    info,
    pack,
    unpack,
)
from sparseinfer.formats.panel import BY_SHAPE, FEW_TOKENS, MANY_TOKENS, kblock_for
from sparseinfer.formats.patterns import Pattern, detect_pattern
from sparseinfer.formats.table import FORMATS, check_format

__all__ = [
    "BLOCKS",
    "BY_SHAPE",
    "FEW_TOKENS",
    "FORMATS",
    "MANY_TOKENS",
    "TARGETS",
    "Pattern",
    "check_buffer",
    "check_format",
    "detect_pattern",
    "host_bytes",
    "info",
    "is_own",
    "kblock_for",
    "pack",
    "unpack",
]
