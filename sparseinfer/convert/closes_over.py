"""Functions kept on a model that hold the model, or parts of it, within.

`copy.deepcopy` copies a bound method and a `functools.partial`, and what they hold with them, but
leaves a function as it is: in the copy of a model, a lambda on it goes on running the original.
"""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from typing import Any

from torch import nn

__all__ = [
    "Rebinding",
    "held_layers",
    "holders",
    "holds_compiled",
    "is_compiled",
    "rebind_references",
]

_MOST_DEEP = 12
"""Functions within functions that are followed; decorators nest a few."""


def holders(model: nn.Module, held: Collection[nn.Module]) -> list[str]:
    """Names of the attributes and hooks of `model` whose functions hold a module of `held`.

    Example:
        >>> layer, model = nn.Linear(2, 2), nn.Module()
        >>> model.call = lambda x, own=layer: own(x)
        >>> holders(model, {layer}), holders(model, set())
        (['call'], [])
    """
    ids = {id(module) for module in held}
    return [
        name
        for name, value in _attributes(model)
        if any(id(found) in ids for found in _within(value) if isinstance(found, nn.Module))
    ]


def is_compiled(value: Any) -> bool:
    """Whether `value` is what `torch.compile` made of a function.

    Example:
        >>> is_compiled(print)
        False
    """
    return hasattr(value, "_torchdynamo_orig_callable") and not isinstance(value, nn.Module)


def holds_compiled(model: nn.Module) -> bool:
    """Whether a part of `model`, or a function on it, is compiled by `torch.compile`.

    Example:
        >>> holds_compiled(nn.Linear(2, 2))
        False
    """
    if any(
        type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
        for module in model.modules()
    ):
        return True
    return any(is_compiled(own) for _, value in _attributes(model) for own in _within(value))


def held_layers(model: nn.Module, inplace: bool) -> dict[nn.Module, str]:
    """Modules that functions on `model` go on calling whatever takes their place, and which do.

    Those are modules that a bound method belongs to; and where nothing is copied, all that a
    function holds.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model.first = model[0].forward
        >>> held_layers(model, inplace=False) == {model[0]: "first"}
        True
    """
    found: dict[nn.Module, str] = {}
    for name, value in _attributes(model):
        for own in _within(value):
            if isinstance(own, types.MethodType):
                own = own.__self__
            elif not inplace:
                continue
            if isinstance(own, nn.Module):
                found.setdefault(own, name)
    return found


class Rebinding:
    """Makes `copy.deepcopy(model, memo)` copy those functions that hold modules of the model.

    `memo` gets them at once, with empty cells; `fill` puts copies in the cells afterwards.
    What a cell holds beside modules of the model stays shared with the original. Compiled
    functions are left: the code that was compiled for them holds the original.
    """

    def __init__(self, model: nn.Module, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._cells: dict[int, tuple[Any, Any]] = {}
        self._functions: list[tuple[types.FunctionType, types.FunctionType]] = []
        self._own = {id(module) for module in model.modules()}
        for _, value in _attributes(model):
            for found in _within(value, compiled=False):
                if isinstance(found, types.FunctionType) and id(found) not in memo:
                    if self._holds(found):
                        self._prepare(found)

    def _holds(self, value: Any) -> bool:
        return any(id(found) in self._own for found in _within(value))

    def _prepare(self, function: types.FunctionType) -> None:
        cells = []
        for cell in function.__closure__ or ():
            if self._holds(cell):
                cell = self._cells.setdefault(id(cell), (cell, types.CellType()))[1]
            cells.append(cell)
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, None,
            tuple(cells) if function.__closure__ else None,
        )  # fmt: skip
        made.__qualname__, made.__module__ = function.__qualname__, function.__module__
        made.__doc__ = function.__doc__
        self._memo[id(function)] = made
        self._functions.append((function, made))

    def fill(self) -> None:
        """Put copies of what the functions held in those that stand for them."""
        for old, new in self._cells.values():
            new.cell_contents = deepcopy(old.cell_contents, self._memo)
        for function, made in self._functions:
            made.__defaults__ = self._copied(function.__defaults__)
            made.__kwdefaults__ = self._copied(function.__kwdefaults__)
            vars(made).update({key: self._copied(own) for key, own in vars(function).items()})

    def _copied(self, value: Any) -> Any:
        return deepcopy(value, self._memo) if self._holds(value) else value


_NO_FUNCTIONS = ("_parameters", "_buffers", "_modules", "_compiled_call_impl")
"""Attributes that hold no function on the model; the last, of `module.compile()`, runs its own
module, and torch copies none."""


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of the modules' attributes, hooks among them, that may hold functions.

    Methods of users' classes are among them: one may be compiled, or close over a layer.
    """
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    for cls in classes:
        if not cls.__module__.startswith(("torch.", "sparseinfer.")):
            for key, value in vars(cls).items():
                if isinstance(value, types.FunctionType) and not key.startswith("__"):
                    yield f"{cls.__qualname__}.{key}", value
    for path, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule":  # it compiles anew what it holds
            continue
        for key, value in vars(module).items():
            if key not in _NO_FUNCTIONS and not isinstance(value, nn.Module):
                yield f"{path}.{key}" if path else key, value


def _within(value: Any, compiled: bool = True) -> Iterator[Any]:
    """`value` and what it holds, through functions, methods, partials and containers.

    Modules are not entered, and compiled functions only where `compiled`.
    """
    seen: dict[int, Any] = {}
    left = [(value, 0)]
    while left:
        found, deep = left.pop()
        if id(found) in seen or deep > _MOST_DEEP:
            continue
        seen[id(found)] = found
        yield found
        left += [(own, deep + 1) for own in _parts(found, compiled)]


def _parts(value: Any, compiled: bool) -> list[Any]:
    if is_compiled(value):
        # Its own closure is the compiler's; what matters is what was compiled.
        return [value._torchdynamo_orig_callable] if compiled else []
    if isinstance(value, types.CellType):
        try:
            return [value.cell_contents]
        except ValueError:  # it is empty yet
            return []
    if isinstance(value, types.FunctionType):
        named = (value.__globals__.get(name) for name in _globals_read(value.__code__))
        return [
            *(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, vars(value),
            *(own for own in named if isinstance(own, nn.Module)),
        ]  # fmt: skip
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, functools._lru_cache_wrapper):
        return [value.__wrapped__]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, dict | weakref.WeakKeyDictionary | weakref.WeakValueDictionary):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return []


@functools.lru_cache(maxsize=4096)
def _globals_read(code: types.CodeType) -> tuple[str, ...]:
    return tuple({own.argval for own in dis.get_instructions(code) if own.opname == "LOAD_GLOBAL"})


def rebind_references(model: nn.Module, copied: Callable[[nn.Module], nn.Module | None]) -> None:
    """Let weak references on `model` refer to `copied(module)` where they refer to others' modules.

    Example:
        >>> parent, other = nn.Module(), nn.Module()
        >>> parent.up = weakref.ref(parent)
        >>> rebind_references(parent, {parent: other}.get)
        >>> parent.up() is other
        True
    """
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, weakref.ref) and isinstance(target := value(), nn.Module):
                own = copied(target)
                if own is not None:
                    vars(module)[key] = weakref.ref(own)
