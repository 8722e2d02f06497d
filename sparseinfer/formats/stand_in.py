"""The dense weight of a sparse layer for code that reads it: unpacked only to compute with it.

What a sparse layer unpacks is a copy, so whatever is written to it would be lost without a trace.
The tensors here refuse every write, and so do the views that share their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["PackedWeight", "ReadOnly", "read_only"]

_OF_TENSOR: Any = Tensor  # what torch's annotations do not tell

_ANSWERED: frozenset[Any] = frozenset({
    *(getattr(Tensor, name).__get__ for name in (
        "device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_nested", "is_quantized",
        "is_sparse", "layout", "ndim", "requires_grad", "shape",
    )),
    Tensor.__len__, Tensor.dim, Tensor.element_size, Tensor.is_floating_point, Tensor.nelement,
    Tensor.numel, Tensor.size,
})  # fmt: skip
"""What needs no values. Models ask for the dtype or the device of a weight at every call."""

_FUSED = [name for name in dir(torch) if name.startswith("_fused_") and name.endswith("_")]
"""The steps of optimizers."""

_UNCOUNTED: frozenset[Any] = frozenset({
    Tensor.apply_, Tensor.map_, _OF_TENSOR.map2_, _OF_TENSOR.data.__set__, _OF_TENSOR.grad.__set__,
    *(getattr(torch, name) for name in _FUSED),
})  # fmt: skip
"""Writes to their first argument that torch does not count in `Tensor._version`."""

_LEARNING: frozenset[Any] = frozenset({
    Tensor.requires_grad_, _OF_TENSOR.requires_grad.__set__,
})  # fmt: skip
"""Asked with True they announce writes, of gradients and then of an optimizer's steps."""


class ReadOnly(Tensor):
    """A tensor whose writes would be lost: they raise, and all else gives plain tensors.

    Views, and whatever else shares its memory, are read-only too; NumPy arrays as well.

    Raises:
        RuntimeError: an operation writes to the tensor or to what shares its memory, sets its
            `data` or `grad`, or asks it for gradients.

    Example:
        >>> weight = read_only(torch.zeros(2))
        >>> type(weight + 1).__name__, type(weight[0]).__name__
        ('Tensor', 'ReadOnly')
        >>> try: weight[0].fill_(1.0)
        ... except RuntimeError as error: print(str(error).split(",")[1])
         got fill_
    """

    # transformers writes initial values into whatever it does not find marked as loaded.
    _is_hf_initialized = True

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ANSWERED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if _sets(func, args, kwargs) and any(isinstance(own, ReadOnly) for own in _first(args)):
            raise _lost(func)
        opened: dict[int, Tensor] = {}

        def plain(value: Any) -> Any:
            if not isinstance(value, ReadOnly):
                return value
            return opened.setdefault(id(value), value._plain())

        args, kwargs = tree_map(plain, args), tree_map(plain, kwargs)
        before = [tensor._version for tensor in opened.values()]
        result = func(*args, **kwargs)
        if before != [tensor._version for tensor in opened.values()]:
            raise _lost(func)
        owned = {tensor.untyped_storage()._cdata for tensor in opened.values() if _stored(tensor)}
        return tree_map(lambda value: _sealed(value, owned), result)

    def set_(self, *args: Any, **kwargs: Any) -> Any:
        # The one method that torch does not bring to `__torch_function__`.
        raise _lost(Tensor.set_)

    def _plain(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)


class PackedWeight(ReadOnly):
    """A tensor of `shape` that stands for a packed one: every use of its values calls `unpack`.

    `unpack` gives a tensor of this shape, type and device that nobody else holds.

    Raises:
        RuntimeError: see `ReadOnly`.

    Example:
        >>> weight = PackedWeight(lambda: torch.eye(4), (4, 4), torch.float32, torch.device("cpu"))
        >>> weight.dtype, float(weight.sum())
        (torch.float32, 4.0)
    """

    _unpack: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, unpack: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype,
        device: torch.device,
    ) -> PackedWeight:  # fmt: skip
        weight = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype, device=device)
        weight._unpack = unpack
        return weight

    def _plain(self) -> Tensor:
        # An inference tensor would not count the writes to it.
        with torch.inference_mode(False), torch.no_grad():
            return self._unpack()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What reaches the dispatcher past `__torch_function__`: its schema tells the writes."""
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and any(isinstance(leaf, PackedWeight) for leaf in tree_leaves(given)):
                raise _lost(func)
        return func(*tree_map(_opened, args), **tree_map(_opened, kwargs))


def read_only(tensor: Tensor) -> Tensor:
    """The tensor, which shares its memory with no other, as one that refuses writes.

    Example:
        >>> type(read_only(torch.zeros(2))).__name__
        'ReadOnly'
    """
    return tensor.as_subclass(ReadOnly)


def _opened(value: Any) -> Any:
    return value._plain() if isinstance(value, ReadOnly) else value


def _sets(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func in _LEARNING:
        return bool(args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
    return func in _UNCOUNTED


def _first(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first argument: a tensor, or the tensors of a list."""
    first = args[0] if args else None
    return tuple(first) if isinstance(first, list | tuple) else (first,)


def _stored(value: Any) -> bool:
    """Whether it has memory of its own: not so for `torch.func`'s wrapped tensors."""
    return isinstance(value, Tensor) and torch._C._has_storage(value)


def _sealed(value: Any, owned: set[int]) -> Any:
    if isinstance(value, numpy.ndarray):
        value.flags.writeable = False
    elif type(value) is Tensor and _stored(value) and value.untyped_storage()._cdata in owned:
        return read_only(value)
    return value


def _lost(func: Any) -> RuntimeError:
    name = getattr(func, "__name__", str(func))
    if name == "__set__":
        name = f"an assignment to .{func.__self__.__name__}"
    return RuntimeError(
        "expected no write to a weight that a sparse layer unpacks anew at every read, got "
        f"{name}, which would be lost; try layer.weight = weight, which packs it, "
        "sparseinfer.to_dense(model) before such changes and convert_to_sparse after them, or "
        "weight.clone() for a copy to change"
    )
