"""The dense weight of a sparse layer for code that reads it: unpacked only to compute with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sparseinfer import formats

__all__ = ["PackedWeight"]

_ANSWERED: frozenset[Any] = frozenset({
    *(getattr(Tensor, name).__get__ for name in (
        "device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_nested", "is_quantized",
        "is_sparse", "layout", "ndim", "requires_grad", "shape",
    )),
    Tensor.__len__, Tensor.dim, Tensor.element_size, Tensor.is_floating_point, Tensor.nelement,
    Tensor.numel, Tensor.size,
})  # fmt: skip
"""What needs no values. Models ask for the dtype or the device of a weight at every call."""


class PackedWeight(Tensor):
    """A tensor of `shape` that stands for a packed one: every use of its values unpacks it.

    It is read-only: writing into it changes a copy. `restore` takes the unpacked tensor to `shape`,
    `dtype` is the type of its values.

    Example:
        >>> weight = PackedWeight(formats.pack(torch.eye(4)), (4, 4), lambda weight: weight)
        >>> weight.dtype, float(weight.sum())
        (torch.float32, 4.0)
    """

    packed: Tensor
    restore: Callable[[Tensor], Tensor]

    @staticmethod
    def __new__(
        cls, packed: Tensor, shape: Sequence[int], restore: Callable[[Tensor], Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> PackedWeight:  # fmt: skip
        weight = Tensor._make_wrapper_subclass(
            cls, torch.Size(shape), dtype=dtype, device=packed.device
        )
        weight.packed = packed
        weight.restore = restore
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ANSWERED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*tree_map(_unpacked, args), **tree_map(_unpacked, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(_unpacked, args), **tree_map(_unpacked, kwargs or {}))


def _unpacked(value: Any) -> Any:
    if not isinstance(value, PackedWeight):
        return value
    return value.restore(formats.unpack(value.packed)).to(value.dtype)
