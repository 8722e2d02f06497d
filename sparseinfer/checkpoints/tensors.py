"""Which tensors of a file are plain, and whether its bytes are behind all that they claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError

__all__ = ["check_bytes", "check_tensors", "identity", "is_plain"]

_MOST_TIMES = 16
"""So many times the bytes of its file may overlapping views add up to."""

_SLACK = 1 << 20


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, with its values in memory: not sparse, quantised, nested, or meta.

    Example:
        >>> is_plain(torch.eye(2)), is_plain(torch.eye(2).to_sparse())
        (True, False)
    """
    return (
        tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
        and not tensor.is_nested
    )


def identity(tensor: Tensor) -> object:
    """A key that is equal for tensors with the same elements in the same memory.

    Example:
        >>> weight = torch.eye(2)
        >>> identity(weight) == identity(weight.detach()), identity(weight) == identity(weight[0])
        (True, False)
    """
    if not is_plain(tensor):
        return id(tensor)
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def check_tensors(state: Mapping[str, Any], size: int) -> None:
    """Check what was read from a file of `size` bytes: every element of every tensor lies in it.

    Raises:
        CheckpointError: a tensor is nested; elements of one share memory; views of the same memory
            add up to many times the file.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_nested:
            raise CheckpointError(
                f"{name}: expected a tensor with a shape, got a nested one; "
                "try tensor.to_padded_tensor(0) before saving"
            )
        if is_plain(tensor):
            _check_memory(name, tensor)
    check_bytes(state, size)


def check_bytes(state: Mapping[Any, Any], size: int) -> None:
    """Check that the tensors of a file of `size` bytes would not take many times as much in copies.

    Raises:
        CheckpointError: they would.
    """
    plain = (value for value in state.values() if isinstance(value, Tensor) and is_plain(value))
    apart = {identity(tensor): tensor.numel() * tensor.element_size() for tensor in plain}
    total = sum(apart.values())
    if total > _MOST_TIMES * size + _SLACK:
        raise CheckpointError(
            f"expected tensors of at most {_MOST_TIMES} times the file's {size} bytes, got views "
            f"of {total} bytes; try saving each tensor's clone()"
        )


def _check_memory(name: str, tensor: Tensor) -> None:
    # An expanded tensor has elements without end, and none of them of its own.
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            raise CheckpointError(
                f"{name}: expected a tensor with memory for each element, got shape "
                f"{list(tensor.shape)} with strides {list(tensor.stride())}; "
                "try tensor.contiguous() before saving"
            )
        reach += stride * max(0, size - 1)
