"""Activations and norms that models write out become the operators that they are.

A formula is found whatever the order of its factors. Its numbers have to be its own, but for the
eps of a norm; a tensor on the way that others read too stays for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.passes.matching import Formula, close

__all__ = ["fuse_formulas"]

CUBE = 0.044715
"""Of GELU's approximation by tanh (Hendrycks and Gimpel, 2016)."""


def fuse_formulas(graph: Graph) -> None:
    """Put the operator in the place of the last node of each formula; dead code is left.

    Example:
        >>> import torch
        >>> x, gate, y = (Value(name, (2,)) for name in ("x", "gate", "y"))
        >>> nodes = [
        ...     Node("activation", "", [x], gate, {}, "sigmoid"),
        ...     Node("binary", "act", [x, gate], y, {"kind": "multiply"}),
        ... ]
        >>> graph = Graph([x], nodes, [y])
        >>> fuse_formulas(graph)
        >>> print(graph.nodes[1])
        y[2] = silu(activation(x))  # act
    """
    formula = Formula(graph)
    for node in graph.nodes:
        if node.op == "binary" and node.activation == "none":
            for find in (_gated, _norm):
                new = find(node, formula)
                if new is not None:
                    node.op, node.inputs, node.attributes, node.activation = new
                    break
    _take_affine(graph)


Called = tuple[str, list[Value | None], dict[str, object], str]
"""An operator, its operands, its attributes and its activation."""


def _gated(node: Node, formula: Formula) -> Called | None:
    """A number times x times a function of x."""
    if node.attributes["kind"] not in ("multiply", "divide"):
        return None
    for gate in formula.factors(node.output)[1]:
        for number, of, called in GATES:
            x = of(gate, formula)
            if x is None or x.shape != node.output.shape:
                continue
            found, factors = formula.factors(node.output, (x, gate))
            if close(found, number) and set(factors) == {x, gate} and len(factors) == 2:
                op, given, activation = called
                return op, [x], given, activation
    return None


def _erf_gate(value: Value, formula: Formula) -> Value | None:
    """x of erf(x / sqrt 2) + 1."""
    inner = formula.unary(formula.plus(value, 1.0), "erf")
    return None if inner is None else _times(inner, 2**-0.5, formula)


def _tanh_gate(value: Value, formula: Formula) -> Value | None:
    """x of tanh(sqrt(2 / pi) (x + 0.044715 x^3)) + 1."""
    inner = formula.unary(formula.plus(value, 1.0), "tanh")
    if inner is None:
        return None
    number, factors = formula.factors(inner)
    if not close(number, math.sqrt(2 / math.pi)):
        return None
    if len(factors) == 1:
        for x, cubic in _both(formula.terms(factors[0])):
            if _is_power(cubic, x, 3, formula):
                return x
    if len(factors) == 2:
        for x, rest in _both((factors[0], factors[1])):
            square = formula.plus(rest, 1.0)
            if square is not None and _is_power(square, x, 2, formula):
                return x
    return None


def _sigmoid_gate(value: Value, formula: Formula) -> Value | None:
    return formula.unary(value, "sigmoid")


def _relu6_gate(value: Value, formula: Formula) -> Value | None:
    """x of min(max(x + 3, 0), 6)."""
    return formula.plus(formula.unary(value, "relu6"), 3.0)


Gate = Callable[[Value, Formula], Value | None]

GATES: tuple[tuple[float, Gate, tuple[str, dict[str, object], str]], ...] = (
    (0.5, _erf_gate, ("activation", {}, "gelu")),
    (0.5, _tanh_gate, ("activation", {}, "gelu_tanh")),
    (1.0, _sigmoid_gate, ("activation", {}, "silu")),
    (1 / 6, _relu6_gate, ("unary", {"kind": "hardswish"}, "none")),
)
"""Functions that are a number times x times a gate, and the operator that each is."""


def _both(pair: tuple[Value, Value] | None) -> tuple[tuple[Value, Value], ...]:
    return () if pair is None else (pair, pair[::-1])


def _times(value: Value, number: float, formula: Formula) -> Value | None:
    """x of `number` x."""
    node = formula.node(value, "binary")
    if node is None:
        return None
    for x in node.inputs:
        assert x is not None
        if x.constant is None:
            found, factors = formula.factors(value, (x,))
            if close(found, number) and factors == [x]:
                return x
    return None


def _is_power(value: Value, x: Value, power: int, formula: Formula) -> bool:
    """Whether it is 0.044715 times a power of x."""
    number, factors = formula.factors(value, (x,))
    return close(number, CUBE) and factors == [x] * power


def _norm(node: Node, formula: Formula) -> Called | None:
    """d / sqrt(mean(d^2) + eps) over the last dimension, d = x - mean(x) or x."""
    a, b = node.inputs
    kind = node.attributes["kind"]
    if kind not in ("divide", "multiply"):
        return None
    for d, scale in ((a, b),) if kind == "divide" else ((a, b), (b, a)):
        assert d is not None and scale is not None
        inner = _root(scale, kind == "divide", formula)
        sum = formula.plus_any(inner)
        if sum is None or d.shape != node.output.shape or not d.shape:
            continue
        square, eps = sum
        if eps < 0 or not _is_mean_square(square, d, formula):
            continue
        x = _centred(d, formula)
        given: dict[str, object] = {"eps": eps, "centred": x is not None}
        return "layer_norm", [d if x is None else x, None, None], given, "none"
    return None


def _root(value: Value, divides: bool, formula: Formula) -> Value | None:
    """v, where a value is sqrt(v), or 1 / sqrt(v) where it is a factor."""
    if divides:
        return _square_root(value, formula)
    found = formula.unary(value, "rsqrt")
    node = formula.node(value, "binary", "divide")
    if found is None and node is not None:
        assert node.inputs[0] is not None and node.inputs[1] is not None
        one = formula.factors(node.inputs[0])
        found = _square_root(node.inputs[1], formula) if one == (1.0, []) else None
    return found


def _square_root(value: Value, formula: Formula) -> Value | None:
    node = formula.node(value, "binary", "power")
    if node is not None and node.inputs[1] is not None:
        return node.inputs[0] if formula.factors(node.inputs[1]) == (0.5, []) else None
    return formula.unary(value, "sqrt")


def _is_mean_square(value: Value, d: Value, formula: Formula) -> bool:
    mean = _mean_of(value, formula)
    return mean is not None and formula.factors(mean, (d,)) == (1.0, [d, d])


def _mean_of(value: Value, formula: Formula) -> Value | None:
    """What the mean over the last dimension is taken of, which stays."""
    node = formula.node(value, "reduce", "mean")
    if node is None or node.inputs[0] is None or not node.attributes["keepdim"]:
        return None
    last = [len(node.inputs[0].shape) - 1]
    return node.inputs[0] if node.attributes["axes"] == last else None


def _centred(d: Value, formula: Formula) -> Value | None:
    """x of x - mean(x)."""
    node = formula.node(d, "binary", "subtract")
    if node is None or node.inputs[1] is None:
        return None
    x = node.inputs[0]
    return x if x is not None and _mean_of(node.inputs[1], formula) is x else None


def _take_affine(graph: Graph) -> None:
    """A factor and a term for each feature become the weight and the bias of the norm before."""
    producers, uses = graph.producers(), graph.uses()
    for node in list(graph.nodes):
        kind = node.attributes.get("kind")
        if node.op not in ("binary", "add") or node.activation != "none":
            continue
        place = {"multiply": 1, "add": 2}.get("add" if node.op == "add" else str(kind))
        for x, own in (node.inputs, node.inputs[::-1]):
            assert x is not None and own is not None
            norm = producers.get(x)
            if norm is None or norm.op != "layer_norm" or place is None or uses[x] != 1:
                continue
            if norm.inputs[place] is not None or norm.inputs[2] is not None:
                continue
            row = _row(own, x.shape)
            if row is not None and node.output.shape == x.shape:
                norm.inputs[place], norm.output = row, node.output
                producers[node.output] = norm
                graph.remove([node])
                break


def _row(value: Value, shape: tuple[int, ...]) -> Value | None:
    """A constant that has a number for each feature, and no other dimension."""
    if value.constant is None or value.constant.numel() != shape[-1]:
        return None
    if len(value.shape) > len(shape) or value.shape[-1:] != shape[-1:]:
        return None
    row = value.constant.reshape(-1)
    return Value(value.name, tuple(row.shape), row)
