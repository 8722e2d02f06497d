"""Packed weights as bytes: pack, unpack and look into the native formats.

A packed weight is one contiguous `uint8` tensor, in memory as it is on disk. The layouts are
written down byte by byte in `csrc/formats`.
"""

from sparseinfer.formats.bsr_on_device import BLOCKS
from sparseinfer.formats.memory import check_buffer, host_bytes, is_own
from sparseinfer.formats.packed import (
    BY_SHAPE,
    FEW_TOKENS,
    FORMATS,
    MANY_TOKENS,
    TARGETS,
    check_format,
    info,
    kblock_for,
    pack,
    unpack,
)
from sparseinfer.formats.patterns import Pattern, detect_pattern

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
