"""Finds layers whose weight a model's code reads itself, instead of calling the layer.

`F.linear(x, self.layer.weight)` never calls the layer, so nothing that took its place would run; it
would only unpack its weight at every read. Example inputs show that; without any, the source code
of the forward methods is followed from `self` through attributes, items, loops and local names.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

__all__ = ["weight_reads"]

_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

_ANSWERED = {
    "device", "dtype", "is_cpu", "is_cuda", "is_meta", "is_quantized", "is_sparse", "layout",
    "ndim", "requires_grad", "shape", "dim", "element_size", "is_floating_point", "nelement",
    "numel", "size",
}  # fmt: skip
"""Attributes of a weight that need no values: a packed one tells them too."""

_HARMLESS_CALLS = ("isinstance", "hasattr", "len", "type", "id")

_PASSED_ON = ("enumerate", "reversed", "zip", "list", "tuple", "iter", "next", "sorted", "getattr")

_MOST_DEEP = 6
"""Calls of methods and functions within a forward that are followed."""

Values = tuple[Any, ...]
"""The objects that an expression may stand for, as far as they are known."""

Known = dict[Any, tuple[list[nn.Module], Values]]
"""What functions called with these arguments read, and what they return."""


def weight_reads(model: nn.Module) -> dict[nn.Module, str]:
    """The modules of `model` whose weight another module's code reads, and whose code that is.

    What cannot be followed is not found: code without its source is only searched for names.

    Example:
        >>> class Functional(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return nn.functional.linear(x, self.layer.weight)
        >>> model = Functional()
        >>> weight_reads(model) == {model.layer: "Functional.forward"}
        True
    """
    found: dict[nn.Module, str] = {}
    known: Known = {}
    for module in model.modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        for function, values in (_bound(call, module) for call in (module.forward, *hooks)):
            if function is None or function.__module__.startswith("torch."):
                continue
            for read in _Reader(function, values, known).reads():
                if read is not module:
                    found.setdefault(read, f"{type(module).__name__}.{function.__name__}")
    return found


def _bound(call: Any, module: nn.Module) -> tuple[types.FunctionType | None, list[Values]]:
    """The function behind a callable, and what its first arguments are known to be."""
    first: list[Values] = []
    for _ in range(_MOST_DEEP):
        if isinstance(call, functools.partial):
            first = [*((own,) for own in call.args), *first]
            call = call.func
        elif isinstance(call, types.MethodType):
            first = [(call.__self__,), *first]
            call = call.__func__
        elif hasattr(call, "__wrapped__"):
            call = call.__wrapped__
    if not isinstance(call, types.FunctionType):
        return None, []
    return call, first or [(module,)]


@functools.lru_cache(maxsize=4096)
def _parsed(function: types.CodeType) -> ast.AST | None:
    """The definition of a function; None where its source is not there or stands for itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.AsyncFunctionDef):
            return node
    return None


class _Reader(ast.NodeVisitor):
    """Follows one function, whose first parameters are `values`."""

    def __init__(
        self, function: types.FunctionType, values: Sequence[Values], known: Known, deep: int = 0
    ) -> None:
        self._function, self._values_given, self._known, self._deep = function, values, known, deep
        self._read: list[nn.Module] = []
        self._returned: list[Any] = []
        self._harmless: set[int] = set()
        self._names: dict[str, Values] = {}
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        self._names.update(zip(names, values, strict=False))
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                self._names.setdefault(name, (cell.cell_contents,))
            except ValueError:  # it is empty yet
                continue

    def reads(self) -> list[nn.Module]:
        """The modules whose weight is read."""
        definition = _parsed(self._function.__code__)
        if definition is None:
            return self._by_name()
        body: Any = definition.body  # type: ignore[attr-defined]
        for node in body if isinstance(body, list) else [body]:
            self.visit(node)
        return self._read

    def _by_name(self) -> list[nn.Module]:
        """Children that code without source names beside `weight`."""
        names = self._function.__code__.co_names
        if not set(_WEIGHTS) & set(names):
            return []
        known = [value for values in self._names.values() for value in values]
        return [
            value._modules[name]  # type: ignore[misc]
            for value in known
            if isinstance(value, nn.Module)
            for name in names
            if value._modules.get(name) is not None
        ]

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._loop(node.target, node.iter)
        for inner in (*node.body, *node.orelse):
            self.visit(inner)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.visit(node.value)
            self._returned += self._values(node.value)

    def _comprehension(self, node: Any) -> None:
        for part in node.generators:
            self._loop(part.target, part.iter)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _ANSWERED:
            self._harmless.add(id(node.value))
        if node.attr in _WEIGHTS and id(node) not in self._harmless:
            self._note(self._values(node.value))
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _HARMLESS_CALLS:
            self._harmless.update(map(id, node.args))
        if name == "getattr" and len(node.args) > 1 and _constant(node.args[1]) in _WEIGHTS:
            self._note(self._values(node.args[0]))
        self.generic_visit(node)
        self._follow(node)

    def _note(self, values: Iterable[Any]) -> None:
        self._read += [value for value in values if isinstance(value, nn.Module)]

    def _bind(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] = self._values(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, own in zip(target.elts, value.elts, strict=False):
                self._bind(one, own)

    def _loop(self, target: ast.AST, over: ast.AST) -> None:
        """Any name of the target may be any element: enumerate and zip are not told apart."""
        elements = tuple(own for value in self._values(over) for own in _elements(value))
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                self._names[node.id] = elements

    def _values(self, node: ast.AST) -> Values:
        if isinstance(node, ast.Name):
            if node.id in self._names:
                return self._names[node.id]
            value = self._function.__globals__.get(node.id)
            return () if value is None else (value,)
        if isinstance(node, ast.Attribute):
            return tuple(
                own for value in self._values(node.value) for own in self._attribute(value, node)
            )
        if isinstance(node, ast.Subscript):
            key = _constant(node.slice)
            return tuple(own for value in self._values(node.value) for own in _elements(value, key))
        if isinstance(node, ast.Call):
            return self._of_call(node)
        if isinstance(node, ast.IfExp):
            return self._values(node.body) + self._values(node.orelse)
        if isinstance(node, ast.BoolOp | ast.Tuple | ast.List):
            parts = node.values if isinstance(node, ast.BoolOp) else node.elts
            return tuple(own for part in parts for own in self._values(part))
        return ()

    def _attribute(self, value: Any, node: ast.Attribute) -> Values:
        if not isinstance(value, nn.Module):
            return ()
        if node.attr in value._modules or node.attr in vars(value):
            return (value._modules.get(node.attr, vars(value).get(node.attr)),)
        member = inspect.getattr_static(type(value), node.attr, None)
        if isinstance(member, property) and isinstance(member.fget, types.FunctionType):
            return self._run(member.fget, [(value,)])
        return ()

    def _of_call(self, node: ast.Call) -> Values:
        if isinstance(node.func, ast.Name) and node.func.id in _PASSED_ON:
            if node.func.id == "getattr" and len(node.args) > 1:
                name = _constant(node.args[1])
                return tuple(
                    value._modules[name]
                    for value in self._values(node.args[0])
                    if isinstance(value, nn.Module) and value._modules.get(name) is not None
                )
            return tuple(own for part in node.args for own in self._values(part))
        if isinstance(node.func, ast.Attribute) and node.func.attr in (
            "values",
            "items",
            "children",
        ):
            return self._values(node.func.value)
        return self._follow(node)

    def _follow(self, node: ast.Call) -> Values:
        """What a called method of a module, or function of the same package, reads and returns."""
        given = [self._values(part) for part in node.args]
        if isinstance(node.func, ast.Attribute):
            found: Values = ()
            name = node.func.attr
            if isinstance(node.func.value, ast.Call) and _is_super(node.func.value):
                method = self._inherited(name)
                return self._run(method, [*self._values_given[:1], *given])
            for value in self._values(node.func.value):
                if not isinstance(value, nn.Module):
                    continue
                if name in vars(value):
                    found += self._run(vars(value)[name], given)
                else:
                    method = inspect.getattr_static(type(value), name, None)
                    found += self._run(method, [(value,), *given])
            return found
        if isinstance(node.func, ast.Name):
            for value in self._values(node.func):
                if isinstance(value, types.FunctionType) and any(given):
                    return self._run(value, given)
                if isinstance(value, types.MethodType) and value.__func__ is not self._function:
                    return self._run(value.__func__, [(value.__self__,), *given])
        return ()

    def _run(self, function: Any, values: Sequence[Values]) -> Values:
        if self._deep >= _MOST_DEEP or not isinstance(function, types.FunctionType):
            return ()
        if function.__module__ and function.__module__.startswith("torch."):
            return ()
        key = (function, tuple(tuple(map(id, own)) for own in values))
        if key not in self._known:
            self._known[key] = [], ()  # for a function that calls itself
            inner = _Reader(function, values, self._known, self._deep + 1)
            self._known[key] = inner.reads(), tuple(inner._returned)
        read, returned = self._known[key]
        self._read += read
        return returned

    def _inherited(self, name: str) -> Any:
        """The method that `super()` means within this function."""
        for value in self._values_given[0] if self._values_given else ():
            classes = type(value).__mro__
            for place, cls in enumerate(classes):
                if self._function in vars(cls).values():
                    return next(
                        (vars(base)[name] for base in classes[place + 1 :] if name in vars(base)),
                        None,
                    )
        return None


def _is_super(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "super"


def _constant(node: ast.AST) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def _elements(value: Any, key: Any = None) -> Values:
    """The elements of a container that may be meant by `key`: all where it is not known."""
    if isinstance(value, nn.ModuleDict | dict):
        return (value[key],) if key is not None and key in value else tuple(value.values())
    if isinstance(value, nn.ModuleList | nn.Sequential | list | tuple):
        if isinstance(key, int) and -len(value) <= key < len(value):
            return (value[key],)
        return tuple(value)
    return (value,) if isinstance(value, nn.Module) else ()
