"""Whether a tensor still has its memory: sharding and offloading release it under the tensor.

A native kernel reads a null address as "there is none", so it must never be given one for a tensor
that is there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["address", "require_memory", "require_model_memory"]

_WIDEST = 8
"""Bytes of the largest element that a kernel reads."""

_CERTAIN = 1 << 40
"""No view of released memory, null plus its offset, seems to lie as high as most memory does."""


def address(tensor: Tensor, name: str) -> int:
    """Where the first element of a tensor is, whose `name` the error tells.

    Raises:
        RuntimeError: the tensor has elements, and its storage was released.

    Example:
        >>> bias = torch.zeros(4)
        >>> address(bias, "bias") == bias.data_ptr()
        True
        >>> _ = bias.untyped_storage().resize_(0)
        >>> try: address(bias, "bias")
        ... except RuntimeError as error: print(str(error).split(";")[0])
        expected the memory of bias to be allocated, got a storage of 0 bytes for [4]
    """
    pointer = tensor.data_ptr()
    if pointer >= _CERTAIN:  # cheap: the call of a small layer shows more than this
        return pointer
    offset = tensor.storage_offset()
    # A view of released memory gives null plus its offset.
    if pointer <= _WIDEST * offset and pointer == tensor.itemsize * offset and tensor.numel():
        raise _released(tensor, name)
    return pointer


def require_memory(**tensors: Tensor | None) -> None:
    """Check tensors, by the names that the error tells, before torch copies them: it would crash.

    Tensors without a storage of their own, as tracers and `torch.func` pass them, are left alone.

    Raises:
        RuntimeError: a tensor has elements, and its storage was released.

    Example:
        >>> require_memory(x=torch.zeros(2), bias=None)
    """
    if torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        if (
            tensor is not None
            and torch._C._has_storage(tensor)
            and tensor.numel()
            and tensor.untyped_storage().nbytes() == 0
        ):
            raise _released(tensor, name)


def require_model_memory(model: nn.Module) -> None:
    """Check the parameters and buffers of a model before torch reads or copies them.

    Raises:
        RuntimeError: the storage of one was released.

    Example:
        >>> require_model_memory(nn.Linear(4, 4))
    """
    held = (*model.named_parameters(), *model.named_buffers())
    require_memory(**{name: own for name, own in held if type(own) in (Tensor, nn.Parameter)})


def _released(tensor: Tensor, name: str) -> RuntimeError:
    return RuntimeError(
        f"expected the memory of {name} to be allocated, got a storage of 0 bytes for "
        f"{list(tensor.shape)}; try gathering or loading the parameter before the call"
    )
