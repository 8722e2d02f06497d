"""bfloat16 as the bits that it is made of: NumPy has no such type."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.engines.interface import Array


def to_bits(values: Array) -> Array:
    """Return float32 numbers rounded to bfloat16, ties to even, as uint16; none may be infinite."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, np.uint16)


def from_bits(bits: Array) -> Array:
    """Return the bfloat16 numbers of uint16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
