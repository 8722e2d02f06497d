"""THE table of operators, and what a function in it is given: a `Call`.

The function returns the value that the operator gives, after adding nodes; it raises `Refusal` with
the reason where the engine has no such operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["LOWERINGS", "Call", "Lowering", "Refusal", "lowers", "pair"]


class Refusal(Exception):
    """Why an operator, as it is called, has no place in the graph."""


@dataclass
class Call:
    """One call of an operator: its arguments, tensors as values, and what it gives.

    Example:
        >>> Call(Graph([], [], []), "relu", "net.act", [Value("x", (2,))], {}, (2,)).name
        'relu'
    """

    graph: Graph
    name: str
    module: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def value(self, index: int) -> Value:
        """An argument that has to be a tensor."""
        found = self.args[index]
        if not isinstance(found, Value):
            raise Refusal(f"expected a tensor as argument {index}")
        return found

    def constant(self, index: int) -> Value:
        """An argument that has to be a tensor which the model holds, such as a weight."""
        found = self.value(index)
        if found.constant is None:
            raise Refusal(f"expected a parameter or constant as argument {index}, got {found}")
        return found

    def argument(self, index: int, name: str, default: Any) -> Any:
        """An argument with a default, wherever it is given."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    def add(
        self, op: str, inputs: list[Value | None], activation: str = "none", **attributes: Any
    ) -> Value:
        """Add a node whose output is what the call gives."""
        output = Value(self.name, self.shape, dtype=self.dtype)
        self.graph.nodes.append(Node(op, self.module, inputs, output, attributes, activation))
        return output

    def node(self, op: str, inputs: list[Value | None], output: Value, **attributes: Any) -> Value:
        """Add a node on the way to what the call gives; its output."""
        self.graph.nodes.append(Node(op, self.module, inputs, output, attributes))
        return output

    def step(
        self,
        name: str,
        shape: tuple[int, ...],
        op: str,
        inputs: list[Value | None],
        **attributes: Any,
    ) -> Value:
        """Add a node on the way to what the call gives, under a name after the call's."""
        return self.node(op, inputs, Value(f"{self.name} {name}", shape), **attributes)


Lowering = Callable[[Call], Value | tuple[Value, ...]]

LOWERINGS: dict[Any, Lowering] = {}
"""THE table of operators that are taken, which the files beside this one fill."""


def lowers(*targets: Any) -> Callable[[Lowering], Lowering]:
    """Enter a function in the table, for some operators.

    Example:
        >>> @lowers("an operator")
        ... def lower(call):
        ...     return call.value(0)
        >>> LOWERINGS.pop("an operator") is lower
        True
    """

    def enter(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(targets, function))
        return function

    return enter


def pair(value: int | Sequence[int]) -> list[int]:
    """What is given for height and width, or once for both.

    Example:
        >>> pair(3), pair([3, 5])
        ([3, 3], [3, 5])
    """
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
