"""What calls of a model change, in it and in what it is called with, and how that is undone.

A call may write into tensors, assign other ones, count in Python, fill a cache, or take things out
of its arguments. `State` holds what was there before; tensors are copied only as something is about
to write into them, so that no second model is held.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.random import fork_rng
from torch.utils._python_dispatch import TorchDispatchMode

from sparseinfer.convert.held import Contents, Whole, hold, reachable

__all__ = ["Changes", "State", "random_state_kept", "reachable_tensors"]

_PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)

COPIED_BYTES = 1 << 20
"""Tensors up to this size are copied beforehand too: what numpy writes goes past the dispatcher."""

_UNMARKED = ("running_mean", "running_var")
"""Arguments that batch normalization writes into without saying so in its schema."""


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
    attributes and slots of modules and of other objects, what functions among those close over, and
    what the classes of modules hold. `inputs` are roots too, whose tensors are copied at once.

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

    def __init__(self, *roots: Any, inputs: Any = ()) -> None:
        self._held: list[Contents | Whole] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        for value in reachable((*roots, inputs)):
            if isinstance(value, Tensor):
                if type(value) in _PLAIN_TENSORS and value.layout is torch.strided:
                    self._tensors.append((value, value.detach()))
                continue
            held = hold(value)
            if held is not None:
                self._held.append(held)
        self._storages = {}
        for _, alias in self._tensors:
            storage = alias.untyped_storage()
            if storage.data_ptr():
                self._storages[storage.data_ptr()] = storage
        given = {
            tensor.untyped_storage().data_ptr()
            for tensor in reachable_tensors(inputs)
            if type(tensor) in _PLAIN_TENSORS and tensor.layout is torch.strided
        }
        self._early = {
            address: storage.clone()
            for address, storage in self._storages.items()
            if storage.nbytes() <= COPIED_BYTES or address in given
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
    return [value for value in reachable(roots) if isinstance(value, Tensor)]


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
