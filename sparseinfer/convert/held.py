"""What the values that a model leads to hold, and how each of them is put back."""

from __future__ import annotations

import argparse
import array
import copy
import pickle
import random
import sys
import types
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from sparseinfer.convert.closes_over import is_compiled

__all__ = ["Contents", "Whole", "hold", "reachable"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)

_ITERATORS = ("builtins", "itertools")

MOST_BYTES = 1 << 26
"""Numpy arrays that are larger are not copied: they are data that a model leads to, as through a
trainer, and no state."""

_HOLDERS = (types.SimpleNamespace, argparse.Namespace, UserDict, UserList)
"""Classes of the standard library whose attributes are what a user keeps in them."""


def reachable(roots: tuple[Any, ...]) -> Iterator[Any]:
    """Every mutable value that `roots` lead to, each once, and classes of the modules among them.

    What an object of torch or of the standard library holds within is left out: it is no state of
    the model's.

    Example:
        >>> len(list(reachable(([1, {"more": []}],))))
        3
    """
    seen: dict[int, Any] = {}
    left = list(roots)
    while left:
        value = left.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple | set | frozenset | deque):
            left += value
        elif isinstance(value, types.MethodType):
            left += [value.__self__, value.__func__]
        elif isinstance(value, partial):
            left += [value.func, value.args, value.keywords]
        elif is_compiled(value):
            left.append(value._torchdynamo_orig_callable)
        elif isinstance(value, types.FunctionType):
            left += (value.__closure__ or ()) if _is_users(value) else ()
        elif isinstance(value, types.CellType):
            left += _contents(value)
        elif isinstance(value, type):
            left += [own for own in vars(value).values() if isinstance(own, list | dict | set)]
        elif isinstance(value, LazyModuleMixin) and value.has_uninitialized_params():  # type: ignore[misc]
            continue  # The first call makes its parameters: that is no state to put back.
        elif isinstance(value, nn.Module):
            left += [vars(value), *_scripted(value).values()]
            left += [cls for cls in type(value).__mro__ if _is_users(cls)]
        elif _is_users(type(value)) or isinstance(value, _HOLDERS):
            left += [_slot(own, value) for own in _slots(value)]
            if hasattr(value, "__dict__"):
                left.append(vars(value))


def _is_users(owner: type | types.FunctionType) -> bool:
    package = (owner.__module__ or "").partition(".")[0]
    return package not in ("torch", "sparseinfer") and package not in _STANDARD


_STANDARD = sys.stdlib_module_names - {"__main__"}


class Contents:
    """The entries of a dict, or those plain values of a class that can be counted in."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.before = {key: _spare(value) for key, value in self._now().items()}

    def _now(self) -> dict[Any, Any]:
        if isinstance(self.owner, dict):
            return self.owner
        return {
            key: value
            for key, value in vars(self.owner).items()
            if isinstance(value, _PLAIN) and not key.startswith("__")
        }

    def undo(self) -> list[Callable[[], None]]:
        now = self._now()
        changed = [key for key in self.before if now.get(key, self) is not self.before[key]]
        grows = any(key not in self.before for key in now)
        if not changed and not grows:
            return []
        return [lambda: self._restore(changed, grows)]

    def _restore(self, changed: list[Any], grows: bool) -> None:
        if not isinstance(self.owner, dict):
            for key in changed:
                setattr(self.owner, key, self.before[key])
            return
        if grows:  # each call may add keys of its own
            for key in [key for key in self.owner if key not in self.before]:
                del self.owner[key]
        removed = any(key not in self.owner for key in changed)
        for key in changed:
            self.owner[key] = _spare(self.before[key])
        if removed:  # so that the order is what it was
            for key in [key for key in self.before if key in self.owner]:
                self.owner[key] = self.owner.pop(key)


class Whole:
    """A value that is compared and put back as a whole."""

    def __init__(self, owner: Any, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.owner, self.read, self.write = owner, read, write
        self.before = _spared(read())

    def undo(self) -> list[Callable[[], None]]:
        now = self.read()
        if isinstance(now, list):
            same = len(now) == len(self.before) and all(map(_is, now, self.before))
        elif isinstance(now, Tensor):
            same = torch.equal(now, self.before)
        elif isinstance(now, np.ndarray):
            same = now.tobytes() == self.before.tobytes()
        else:
            same = now == self.before
        return [] if same else [lambda: self.write(_spared(self.before))]


def hold(value: Any) -> Contents | Whole | None:
    """What keeps a value's contents; None where they cannot change, or are others' to keep.

    Example:
        >>> steps = [1, 2]
        >>> held = hold(steps)
        >>> steps.append(3)
        >>> for undo in held.undo(): undo()
        >>> steps
        [1, 2]
    """
    if isinstance(value, dict | type):
        return Contents(value)
    if isinstance(value, list):
        return Whole(value, lambda: list(value), lambda before: _refill(value, before, "extend"))
    if isinstance(value, deque):
        return Whole(value, lambda: list(value), lambda before: _refill(value, before, "extend"))
    if isinstance(value, set):
        return Whole(value, lambda: set(value), lambda before: _refill(value, before, "update"))
    if isinstance(value, bytearray):
        return Whole(value, lambda: bytes(value), lambda before: _refill(value, before, "extend"))
    if isinstance(value, np.ndarray) and value.dtype != object and value.nbytes <= MOST_BYTES:
        return Whole(value, value.copy, lambda before: np.copyto(value, before))
    if isinstance(value, torch.Generator):
        return Whole(value, value.get_state, cast("Callable[[Any], None]", value.set_state))
    if isinstance(value, random.Random):
        return Whole(value, value.getstate, value.setstate)
    if isinstance(value, np.random.Generator):
        return hold(value.bit_generator)
    if isinstance(value, np.random.BitGenerator):
        return _pickled(value, lambda: value.state, partial(setattr, value, "state"))
    if isinstance(value, np.random.RandomState):
        return _pickled(value, value.get_state, value.set_state)
    if isinstance(value, array.array):
        return Whole(value, lambda: value[:], lambda before: value.__setitem__(slice(None), before))
    if isinstance(value, types.CellType):
        return Whole(value, lambda: _contents(value), lambda before: _set_contents(value, before))
    if isinstance(value, torch.jit.ScriptModule) and (names := list(_scripted(value))):
        return Whole(
            value, lambda: list(_scripted(value).values()),
            lambda before: _set_scripted(value, names, before),
        )  # fmt: skip
    if slots := _slots(value):
        return Whole(
            value, lambda: [_slot(own, value) for own in slots],
            lambda before: _set_slots(value, slots, before),
        )  # fmt: skip
    return None


def _pickled(value: Any, read: Callable[[], Any], write: Callable[[Any], None]) -> Whole:
    """A state that holds arrays, which only their bytes tell apart."""
    return Whole(value, lambda: pickle.dumps(read()), lambda before: write(pickle.loads(before)))


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is empty
        return []


def _set_contents(cell: types.CellType, before: list[Any]) -> None:
    if before:
        cell.cell_contents = before[0]
    else:
        del cell.cell_contents


def _slots(value: Any) -> list[Any]:
    """The descriptors of the slots of a user's class."""
    return [
        own
        for cls in type(value).__mro__
        if "__slots__" in vars(cls) and _is_users(cls)
        for own in vars(cls).values()
        if isinstance(own, types.MemberDescriptorType)
    ]


def _slot(descriptor: Any, owner: Any) -> Any:
    """What a slot holds; the descriptor itself where it is empty."""
    try:
        return descriptor.__get__(owner)
    except AttributeError:
        return descriptor


def _set_slots(owner: Any, slots: list[Any], before: list[Any]) -> None:
    for descriptor, value in zip(slots, before, strict=True):
        if value is not descriptor:
            descriptor.__set__(owner, value)
        elif _slot(descriptor, owner) is not descriptor:
            descriptor.__delete__(owner)


def _scripted(module: Any) -> dict[str, Any]:
    """Tensors and plain values that a TorchScript module holds; of others none."""
    if not isinstance(module, torch.jit.RecursiveScriptModule):
        return {}
    found = {name: module._c.getattr(name) for name in module._concrete_type.get_attributes()}
    return {key: own for key, own in found.items() if isinstance(own, (Tensor, *_PLAIN))}


def _set_scripted(module: Any, names: list[str], before: list[Any]) -> None:
    for name, value in zip(names, before, strict=True):
        module._c.setattr(name, value)


def _refill(value: Any, before: Any, add: str) -> None:
    value.clear()
    getattr(value, add)(before)


def _is(one: object, other: object) -> bool:
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)


def _spared(value: Any) -> Any:
    return list(map(_spare, value)) if isinstance(value, list) else value


def _spare(value: Any) -> Any:
    """A copy of an iterator that a call would use up; anything else as it is."""
    if isinstance(value, Iterator) and type(value).__module__ in _ITERATORS:
        try:
            return copy.copy(value)
        except TypeError:  # a generator
            return value
    return value
