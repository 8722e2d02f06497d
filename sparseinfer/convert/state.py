"""What calls of a model change, in it and in what it is called with, and how that is undone.

A call may write into tensors, assign other ones, count in Python, fill a cache, or take things out
of its arguments. `State` holds what was there before; tensors are copied only as something is about
to write into them, so that no second model is held.
"""

from __future__ import annotations

import copy
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.random import fork_rng
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Changes", "State", "random_state_kept", "reachable_tensors"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)

_PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)

COPIED_BYTES = 1 << 20
"""Tensors up to this size are copied beforehand too: what numpy writes goes past the dispatcher."""

_UNMARKED = ("running_mean", "running_var")
"""Arguments that batch normalization writes into without saying so in its schema."""

_ITERATORS = ("builtins", "itertools")


class Changes:
    """What the calls seen have changed; `restore` puts it back, and nothing else.

    Example:
        >>> bool(Changes([]))
        False
    """

    def __init__(self, undo: list[Callable[[], None]]) -> None:
        self._undo = undo

    def __bool__(self) -> bool:
        return bool(self._undo)

    def restore(self) -> None:
        """Put back what was changed."""
        for undo in self._undo:
            undo()

    def __add__(self, other: Changes) -> Changes:
        return Changes([*self._undo, *other._undo])


class State:
    """Everything that `roots`, models and what they are called with, hold now.

    That is tensors, numpy arrays, generators of random numbers, lists, dicts, sets and deques, the
    attributes of modules and of other objects, and what the classes of modules hold.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> state = State(layer)
        >>> with state.watching():
        ...     _ = layer(torch.ones(4, 2))
        >>> changes = state.changes()
        >>> changes.restore()
        >>> int(layer.num_batches_tracked), bool(State(layer).changes())
        (0, False)
    """

    def __init__(self, *roots: Any) -> None:
        self._held: list[_Dict | _Whole] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        for value in _reachable(roots):
            if isinstance(value, Tensor):
                if type(value) in _PLAIN_TENSORS and value.layout is torch.strided:
                    self._tensors.append((value, value.detach()))
                continue
            held = _hold(value)
            if held is not None:
                self._held.append(held)
        self._storages = {}
        for _, alias in self._tensors:
            storage = alias.untyped_storage()
            if storage.data_ptr():
                self._storages[storage.data_ptr()] = storage
        self._early = {
            address: storage.clone()
            for address, storage in self._storages.items()
            if storage.nbytes() <= COPIED_BYTES
        }
        self._saved: dict[int, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Copy tensors before the calls within write into them."""
        with _Writes(self._storages, self._saved):
            yield

    def changes(self) -> Changes:
        """What differs now from what was there at first."""
        undo: list[Callable[[], None]] = []
        for held in self._held:
            undo += held.undo()
        for tensor, alias in self._tensors:
            if _place(tensor) != _place(alias):
                undo.append(_put_back(tensor, alias))
        for address, before in self._early.items():
            if address not in self._saved and not _same_bytes(self._storages[address], before):
                self._saved[address] = before
        for address, before in self._saved.items():
            undo.append(_write_back(self._storages[address], before))
        return Changes(undo)


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Set the random state of torch, numpy and Python back afterwards.

    Example:
        >>> with random_state_kept(nn.Linear(1, 1)):
        ...     _ = torch.rand(1), random.random()
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = {own.device for own in model.parameters() if own.device.type == "cuda"}
    try:
        with fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def reachable_tensors(*roots: Any) -> list[Tensor]:
    """Every tensor that `roots` hold, wherever in lists, dicts and attributes.

    Example:
        >>> len(reachable_tensors(nn.Linear(4, 4), {"more": [torch.zeros(2)]}))
        3
    """
    return [value for value in _reachable(roots) if isinstance(value, Tensor)]


def _reachable(roots: tuple[Any, ...]) -> Iterator[Any]:
    """Every mutable value that `roots` lead to, each once, and classes of the modules among them.

    What an object of torch or of the standard library holds within is left out: it is no state of
    the model's.
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
            left.append(value.__self__)
        elif isinstance(value, type):
            left += [own for own in vars(value).values() if isinstance(own, list | dict | set)]
        elif isinstance(value, LazyModuleMixin):  # its first call makes it another class, for good
            left.append(value._modules)  # type: ignore[attr-defined]
        elif isinstance(value, nn.Module):
            left.append(vars(value))
            left += [cls for cls in type(value).__mro__ if _is_users(cls)]
        elif _is_users(type(value)) and hasattr(value, "__dict__"):
            left.append(vars(value))


def _is_users(cls: type) -> bool:
    package = cls.__module__.partition(".")[0]
    return package not in ("torch", "sparseinfer") and package not in _STANDARD


_STANDARD = sys.stdlib_module_names - {"__main__"}


class _Dict:
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
        added = [key for key in now if key not in self.before]
        if not changed and not added:
            return []
        return [lambda: self._restore(changed, added)]

    def _restore(self, changed: list[Any], added: list[Any]) -> None:
        if not isinstance(self.owner, dict):
            for key in changed:
                setattr(self.owner, key, self.before[key])
            return
        for key in added:
            self.owner.pop(key, None)
        removed = any(key not in self.owner for key in changed)
        for key in changed:
            self.owner[key] = _spare(self.before[key])
        if removed:  # so that the order is what it was
            for key in [key for key in self.before if key in self.owner]:
                self.owner[key] = self.owner.pop(key)


class _Whole:
    """A value that is compared and put back as a whole."""

    def __init__(self, owner: Any, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.owner, self.read, self.write = owner, read, write
        self.before = read()

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
        return [] if same else [lambda: self.write(self.before)]


def _hold(value: Any) -> _Dict | _Whole | None:
    """What keeps a value's contents; None where they cannot change, or are others' to keep."""
    if isinstance(value, dict | type):
        return _Dict(value)
    if isinstance(value, list):
        return _Whole(value, lambda: list(value), lambda before: _refill(value, before, "extend"))
    if isinstance(value, deque):
        return _Whole(value, lambda: list(value), lambda before: _refill(value, before, "extend"))
    if isinstance(value, set):
        return _Whole(value, lambda: set(value), lambda before: _refill(value, before, "update"))
    if isinstance(value, bytearray):
        return _Whole(value, lambda: bytes(value), lambda before: _refill(value, before, "extend"))
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _Whole(value, value.copy, lambda before: np.copyto(value, before))
    if isinstance(value, torch.Generator):
        return _Whole(value, value.get_state, cast("Callable[[Any], None]", value.set_state))
    if isinstance(value, random.Random):
        return _Whole(value, value.getstate, value.setstate)
    return None


def _refill(value: Any, before: Any, add: str) -> None:
    value.clear()
    getattr(value, add)(before)


def _is(one: object, other: object) -> bool:
    return one is other


def _spare(value: Any) -> Any:
    """A copy of an iterator that a call would use up; anything else as it is."""
    if isinstance(value, Iterator) and type(value).__module__ in _ITERATORS:
        try:
            return copy.copy(value)
        except TypeError:  # a generator
            return value
    return value


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(),
        tensor.dtype,
    )  # fmt: skip


def _put_back(tensor: Tensor, alias: Tensor) -> Callable[[], None]:
    def undo() -> None:
        tensor.data = alias

    return undo


def _write_back(storage: Any, before: Any) -> Callable[[], None]:
    def undo() -> None:
        if storage.nbytes() != before.nbytes():
            storage.resize_(before.nbytes())
        storage.copy_(before)

    return undo


def _same_bytes(one: Any, other: Any) -> bool:
    if one.nbytes() != other.nbytes():
        return False
    first, second = (
        torch.empty(0, dtype=torch.uint8, device=s.device).set_(s) for s in (one, other)
    )  # type: ignore[call-overload]
    return torch.equal(first, second)


class _Writes(TorchDispatchMode):
    """Copies known storages before an operator writes into them."""

    def __init__(self, known: dict[int, Any], saved: dict[int, Any]) -> None:
        super().__init__()
        self._known, self._saved = known, saved

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        schema = func._schema
        normalizes = "batch_norm" in schema.name
        if schema.is_mutable or normalizes:
            for place, argument in enumerate(schema.arguments):
                marked = argument.alias_info is not None and argument.alias_info.is_write
                if marked or (normalizes and argument.name in _UNMARKED):
                    self._save(args[place] if place < len(args) else given.get(argument.name))
        return func(*args, **given)

    def _save(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue
            try:
                address = tensor.untyped_storage().data_ptr()
            except RuntimeError:  # a wrapper around others, which has no memory of its own
                continue
            if address in self._known and address not in self._saved:
                self._saved[address] = self._known[address].clone()
