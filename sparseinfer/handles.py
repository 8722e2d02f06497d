"""Validated views of packed buffers: every buffer is checked before a kernel reads it.

A buffer is validated at first sight and again whenever it may have changed: another tensor, other
memory, another length, or an in-place write (torch counts those in `Tensor._version`). Writes
behind torch's back (through `Tensor.numpy()` or a raw pointer) cannot be noticed and are not
allowed.
"""

from __future__ import annotations

import weakref
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from sparseinfer import _C, formats
from sparseinfer.triton import NmMeta, multiprocessors
from sparseinfer.triton.bsr_grid import BsrMeta
from sparseinfer.triton.csr_rows import CsrMeta

__all__ = ["Handle", "open_packed"]


class Handle:
    """A validated packed buffer, ready for kernels.

    `memory` is the host copy that was validated: the buffer itself where it is aligned and on the
    CPU; `device` is the buffer's. `weights` is the native view of it, and `m` and `k` are the
    weight's rows and columns; `linear_m` is `m`, or None where the weight is a convolution's.
    """

    def __init__(self, packed: Tensor) -> None:
        memory = self.memory = formats.host_bytes(packed)
        self.weights = _C.Weights(memory.data_ptr(), memory.numel())
        self.linear = self.weights.linear  # bound once
        self.shape: tuple[int, ...] = tuple(self.weights.shape)
        self.m = self.shape[0]
        self.k = 1
        for size in self.shape[1:]:
            self.k *= size
        self.linear_m = self.m if len(self.shape) == 2 else None
        self.device = packed.device
        self._reference = weakref.ref(packed, partial(_forget, id(packed)))
        # Holding the storage keeps its address from being given to other bytes while this entry
        # lives.
        self._storage = packed.untyped_storage()
        self._pointer = packed.data_ptr()
        self._length = packed.numel()
        self._version = _version(packed)

    def describes(self, packed: Tensor) -> bool:
        """Whether this handle still tells the truth about `packed`."""
        try:
            return (
                self._reference() is packed
                and self._pointer == packed.data_ptr()
                and self._length == packed.numel()
                and self._version == packed._version
            )
        except RuntimeError:  # it became an inference tensor
            return False

    @cached_property
    def info(self) -> dict[str, Any]:
        """What `sparseinfer.formats.info` says of the buffer."""
        return _C.info(self.memory.numpy())

    @cached_property
    def nm_meta(self) -> NmMeta:
        """Where the planes of an nm buffer lie, as the Triton kernels take it."""
        return NmMeta.from_info(self.info, multiprocessors(self.device))

    @cached_property
    def bsr_meta(self) -> BsrMeta:
        """What a bsr buffer holds and where, as the Triton kernels take it."""
        return BsrMeta.from_info(self.info, multiprocessors(self.device))

    @cached_property
    def csr_meta(self) -> CsrMeta:
        """Where the sections of a csr buffer lie, as the Triton kernel takes it."""
        return CsrMeta.from_info(self.info, multiprocessors(self.device))


_HANDLES: dict[int, Handle] = {}
"""By the id of the tensor; an entry goes when its tensor does."""


def open_packed(packed: Tensor) -> Handle:
    """Give the validated handle of a packed buffer, validating it where that has not been done yet.

    An inference tensor carries no version counter, so a change in it would go unseen: it is
    validated at every call. The modules keep ordinary tensors for that reason.

    Raises:
        ValueError: the buffer is not a valid packed weight.

    Example:
        >>> open_packed(formats.pack(torch.eye(8))).m
        8
    """
    handle = _HANDLES.get(id(packed))
    if handle is not None and handle.describes(packed):
        return handle
    handle = Handle(packed)
    if handle._version is not None:
        _HANDLES[id(packed)] = handle
    return handle


def _version(packed: Tensor) -> int | None:
    """Torch's count of writes in place; None where it keeps none, as for inference tensors."""
    try:
        return packed._version
    except RuntimeError:
        return None


def _forget(key: int, reference: weakref.ref[Tensor]) -> None:
    handle = _HANDLES.get(key)
    if handle is not None and handle._reference is reference:
        del _HANDLES[key]
