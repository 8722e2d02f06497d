"""Validated views of packed buffers: every buffer is checked before a kernel reads it.

A buffer is validated at first sight and again whenever it may have changed: another tensor, other
memory, another length, or an in-place write (torch counts those in `Tensor._version`). All else,
what is said of a buffer and what it is unpacked to as well, goes through its handle. Memory that
others may write (a mapped file, shared memory, an array of numpy's) is copied first, and the copy
is what kernels read. Writes behind torch's back into memory of its own (through `Tensor.data`,
`Tensor.numpy()` or a raw pointer) cannot be noticed and are not allowed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sparseinfer import native
from sparseinfer.formats.memory import check_buffer, host_bytes, stays

__all__ = ["DEFAULT_SMS", "Facts", "Handle", "multiprocessors", "open_packed", "peek"]

DEFAULT_SMS = 132
"""Multiprocessors of an H100 or H200, for which the tiles are chosen."""


def multiprocessors(device: torch.device) -> int:
    """How many `device` has; `DEFAULT_SMS` where it is no GPU.

    Example:
        >>> multiprocessors(torch.device("cpu"))
        132
    """
    if device.type != "cuda":
        return DEFAULT_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@dataclass(frozen=True)
class Facts:
    """What a packed buffer's header says, by the names of the native view."""

    format: str
    shape: tuple[int, ...]
    groups: int
    nnz: int
    nbytes: int

    @classmethod
    def of(cls, native: Any) -> Facts:
        """The facts of a native view, which need its memory no more."""
        shape = tuple(native.shape)
        return cls(native.format, shape, native.groups, native.nnz, native.nbytes)


def _read_by_host(device: torch.device) -> bool:
    """Whether the native kernels, which read the host's memory, run the weights of a device."""
    return device.type == "cpu"


class Handle:
    """A validated packed buffer, ready for kernels.

    `memory` is the host's memory that was validated: the buffer itself where it is aligned, on the
    CPU and nobody else's. `device` is the buffer's. `weights` is the native view of it, and `m` and
    `k` are the weight's rows and columns; `linear_m` is `m`, or None where the weight is a
    convolution's or int8 (`is_int8`). `is_pairs` tells that it holds pairs of bfloat16, which
    multiply x in that type. `device_calls` is where `sparseinfer.kernels.dispatch` keeps
    what it decided.

    A buffer on another device is copied to the host to be validated, and no longer: of the copy the
    facts of the header remain (`Facts` and `info`, some hundred bytes), and `memory` is None.
    """

    memory: Tensor | None
    weights: Any

    def __init__(self, packed: Tensor) -> None:
        memory = host_bytes(packed)
        view = native.Weights(memory.data_ptr(), memory.numel())
        if _read_by_host(packed.device):
            self.memory, self.weights = memory, view
            self.linear = view.linear  # bound once
        else:
            self.memory, self.weights = None, Facts.of(view)
        self.info: dict[str, Any] = view.info()
        self.is_int8 = view.value_type == "int8"
        self.is_pairs = view.value_type == "bfloat16" and self.info["params"].get("g") == 2
        self.shape: tuple[int, ...] = tuple(view.shape)
        self.m = self.shape[0]
        self.k = 1
        for size in self.shape[1:]:
            self.k *= size
        # So that calls of float weights, which are many and short, have nothing more to check.
        self.linear_m = self.m if len(self.shape) == 2 and not self.is_int8 else None
        self.device_calls: dict[Any, Callable[..., Tensor]] = {}
        self._metas: dict[Any, Any] = {}
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

    @property
    def activations(self) -> str:
        """The type in which the weight multiplies x on a CPU."""
        return "int8" if self.is_int8 else "bfloat16" if self.is_pairs else "float32"

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the values."""
        found: torch.dtype = getattr(torch, self.info["value_type"])
        return found

    def unpack(self, packed: Tensor) -> Tensor:
        """The dense float32 weight of `packed`, which this handle describes, on its device.

        Other threads run meanwhile. Only what comes from another device is validated again, as
        nothing of its copy was kept.
        """
        memory, view = self.memory, self.weights
        if memory is None:
            memory = host_bytes(packed)
            view = native.Weights(memory.data_ptr(), memory.numel())
        return torch.from_numpy(view.unpack()).to(packed.device)

    def meta(self, read: Callable[[Mapping[str, Any], int], Any]) -> Any:
        """What `read` (a Meta's `from_info`) makes of `info` and the device's multiprocessors,
        once: rows that share it share what it has derived."""
        if read not in self._metas:
            self._metas[read] = read(self.info, multiprocessors(self.device))
        return self._metas[read]


_HANDLES: dict[int, Handle] = {}
"""By the id of the tensor; an entry goes when its tensor does."""


def open_packed(packed: Tensor) -> Handle:
    """Give the validated handle of a packed buffer, validating it where that has not been done yet.

    An inference tensor carries no version counter, so a change in it would go unseen: it is
    validated at every call. The modules keep ordinary tensors for that reason.

    Raises:
        ValueError: the buffer is not a valid packed weight.

    Example:
        >>> from sparseinfer import pack
        >>> open_packed(pack(torch.eye(8))).m
        8
    """
    handle = _HANDLES.get(id(packed))
    if handle is not None and handle.describes(packed):
        return handle
    handle = Handle(packed)
    if handle._version is not None:
        _HANDLES[id(packed)] = handle
    return handle


def peek(packed: Tensor) -> Handle:
    """The handle of `open_packed` for one look: a copy of its memory that it takes is not kept.

    Raises:
        ValueError: the buffer is not a valid packed weight.

    Example:
        >>> from sparseinfer import pack
        >>> peek(pack(torch.eye(8))).shape
        (8, 8)
    """
    check_buffer(packed)
    if _read_by_host(packed.device) and not stays(packed):
        return Handle(packed)
    return open_packed(packed)


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
