"""Finds the hooks of a layer that read or write its weight, by what their code names.

Such a hook would meet a weight that is unpacked for it, so its layer stays dense. Running a hook to
see would run its side effects too.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["touching_hook"]

_KNOWN = (prune.BasePruningMethod, SpectralNorm, SpectralNormLoadStateDictPreHook, WeightNorm)
"""Hooks of torch's whose effect on the weight is read as it is."""

_EVERY_TENSOR = {
    "parameters", "named_parameters", "_parameters", "state_dict", "load_state_dict", "getattr",
    "setattr", "vars", "__dict__", "__getattr__", "__setattr__", "all_weights", "_flat_weights",
}  # fmt: skip
"""Names by which code reaches the weight without naming it."""


def touching_hook(layer: nn.Module) -> str:
    """The name of a forward hook of `layer` that touches its weight, or may; empty for none.

    Functions that a hook calls are read too, as far as its globals, closure and object tell. A hook
    whose code cannot be read may touch anything.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> def clip(module, args): module.weight.data.clamp_(-1, 1)
        >>> _ = layer.register_forward_pre_hook(clip)
        >>> touching_hook(layer)
        'clip'
    """
    tensors = {*layer._parameters, *layer._buffers} - {"bias"}
    for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()):
        if isinstance(hook, _KNOWN):
            continue
        functions = list(_functions(hook, set()))
        if not functions or any(_names(function, tensors) for function in functions):
            return getattr(hook, "__qualname__", type(hook).__qualname__)
    return ""


def _functions(found: Any, seen: set[types.CodeType]) -> Iterator[types.FunctionType]:
    """The Python functions that calling `found` runs; torch's own are left out."""
    owner = None
    while isinstance(found, functools.partial):
        found = found.func
    if isinstance(found, types.MethodType):
        owner, found = found.__self__, found.__func__
    elif not isinstance(found, types.FunctionType):
        owner, found = found, inspect.getattr_static(type(found), "__call__", None)
    found = inspect.unwrap(found) if callable(found) else found
    if not isinstance(found, types.FunctionType) or found.__code__ in seen:
        return
    seen.add(found.__code__)
    yield found
    held = [owner, *_cells(found)]
    for name in _mentioned(found.__code__):
        held.append(found.__globals__.get(name))
    for value in held:
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            if not str(getattr(value, "__module__", "")).startswith("torch."):
                yield from _functions(value, seen)
            continue
        if value is None or isinstance(value, nn.Module | types.ModuleType | type):
            continue
        for name in _mentioned(found.__code__):
            member = inspect.getattr_static(type(value), name, None)
            if isinstance(member, types.FunctionType):
                yield from _functions(types.MethodType(member, value), seen)


def _cells(function: types.FunctionType) -> list[Any]:
    """What a closure holds; a cell may still be empty."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found


def _mentioned(code: types.CodeType) -> set[str]:
    """Names and strings in a function's code, and in the functions defined in it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, types.CodeType):
            found |= _mentioned(constant)
    return found


def _names(function: types.FunctionType, tensors: set[str]) -> bool:
    documentation = {function.__doc__}
    return any(
        name in tensors or name in _EVERY_TENSOR or name.startswith("weight")
        for name in _mentioned(function.__code__) - documentation
    )
