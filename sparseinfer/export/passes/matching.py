"""What a value of a graph is computed by, as formulas are read: its factors, its terms."""

from __future__ import annotations

import math
from collections.abc import Collection

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["Formula", "close", "number_of"]

ROUNDING = 1e-6
"""Of a formula's number: files have them in float32."""


def close(a: float, b: float) -> bool:
    """Whether two numbers are one, rounded to float32.

    Example:
        >>> close(2**-0.5, 0.70710677), close(1.4, 2**0.5)
        (True, False)
    """
    return math.isclose(a, b, rel_tol=ROUNDING)


def number_of(value: Value | None) -> float | None:
    """The number that a constant of one element is."""
    if value is None or value.constant is None or value.constant.numel() != 1:
        return None
    return float(value.constant)


class Formula:
    """How the values of a graph are computed.

    Example:
        >>> import torch
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> two = Value("two", (), torch.tensor(2.0))
        >>> node = Node("binary", "", [x, two], y, {"kind": "divide"})
        >>> number, factors = Formula(Graph([x], [node], [y])).factors(y)
        >>> number, factors == [x]
        (0.5, True)
    """

    def __init__(self, graph: Graph) -> None:
        self.producers = graph.producers()

    def node(self, value: Value | None, op: str, kind: str = "") -> Node | None:
        """The node that computes a value, if it is of that operator, kind or activation."""
        found = None if value is None else self.producers.get(value)
        if found is None or found.op != op:
            return None
        return found if kind in ("", found.attributes.get("kind"), found.activation) else None

    def unary(self, value: Value | None, kind: str) -> Value | None:
        """What a function of one operand is applied to, where that computes a value."""
        node = self.node(value, "unary", kind) or self.node(value, "activation", kind)
        return None if node is None else node.inputs[0]

    def factors(self, value: Value, whole: Collection[Value] = ()) -> tuple[float, list[Value]]:
        """The number and the values whose product a value is; those of `whole` are not taken apart.

        Broadcasting is not looked at.
        """
        number = number_of(value)
        if number is not None:
            return number, []
        node = None if value in whole else self.producers.get(value)
        if node is None or node.op != "binary" or node.activation != "none":
            return 1.0, [value]
        a, b = node.inputs
        assert a is not None and b is not None
        kind, power = node.attributes["kind"], number_of(b)
        if kind == "multiply":
            (m, left), (n, right) = self.factors(a, whole), self.factors(b, whole)
            return m * n, left + right
        if kind == "divide" and power:
            m, left = self.factors(a, whole)
            return m / power, left
        if kind == "power" and power in (2.0, 3.0):
            m, left = self.factors(a, whole)
            return m**power, left * int(power)
        return 1.0, [value]

    def terms(self, value: Value) -> tuple[Value, Value] | None:
        """The two tensors whose sum a value is."""
        node = self.node(value, "add") or self.node(value, "binary", "add")
        if node is None or (node.op == "add" and node.activation != "none"):
            return None
        a, b = node.inputs
        assert a is not None and b is not None
        return a, b

    def plus(self, value: Value | None, number: float) -> Value | None:
        """What a number is added to, where that computes a value."""
        for a, b in self._orders(value):
            found = number_of(b)
            if found is not None and close(found, number):
                return a
        return None

    def plus_any(self, value: Value | None) -> tuple[Value, float] | None:
        """What some number is added to, and that number."""
        for a, b in self._orders(value):
            found = number_of(b)
            if found is not None and a.constant is None:
                return a, found
        return None

    def _orders(self, value: Value | None) -> tuple[tuple[Value, Value], ...]:
        found = None if value is None else self.terms(value)
        return () if found is None else (found, found[::-1])
