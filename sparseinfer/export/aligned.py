"""Memory as the library reads it: model files and contexts begin at multiples of `ALIGN` bytes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ALIGN", "aligned_size", "bytes_of", "new_memory"]

ALIGN = 64
"""Of a file, of each of its sections and tensors, and of a context."""


def aligned_size(size: int) -> int:
    """The next multiple of `ALIGN`.

    Example:
        >>> aligned_size(1), aligned_size(64)
        (64, 64)
    """
    return -(-size // ALIGN) * ALIGN


def new_memory(size: int) -> Tensor:
    """So many bytes, not written yet, that begin at a multiple of `ALIGN`.

    Example:
        >>> memory = new_memory(100)
        >>> len(memory), memory.data_ptr() % ALIGN
        (100, 0)
    """
    memory = torch.empty(size + ALIGN, dtype=torch.uint8, device="cpu")
    at = -memory.data_ptr() % ALIGN
    return memory[at : at + size]


def bytes_of(tensor: Tensor) -> Tensor:
    """The elements of a tensor in their order, as bytes.

    Example:
        >>> len(bytes_of(torch.zeros(4, 3).t()[1:2, :1]))
        4
    """
    own = tensor.contiguous()
    # One of a single element is contiguous whatever its strides.
    return own.as_strided((own.numel(),), (1,)).view(torch.uint8)
