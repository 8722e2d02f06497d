"""How a node computes on bytes: functions of one number by a table, the rest as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.kernels.activations import activation_module
from sparseinfer.quantize.activations import LEVELS, ActivationScale

__all__ = ["FUNCTIONS", "byte_form", "split_activations"]

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "leaky_relu": F.leaky_relu,
    "elu": F.elu, "clamp": torch.clamp, "softplus": F.softplus, "abs": torch.abs, "exp": torch.exp,
    "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "erf": torch.erf, "sin": torch.sin,
    "cos": torch.cos, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
}  # fmt: skip
"""Those of `unary`, each of x and its numbers."""


def byte_form(node: Node) -> list[Node]:
    """The nodes that take bytes and give bytes in the place of one that has such operands.

    Example:
        >>> x = Value("x", (4,), None, torch.uint8, ActivationScale(0.5, 100))
        >>> y = Value("y", (4,), None, torch.uint8, ActivationScale(0.5, 0))
        >>> (lookup,) = byte_form(Node("activation", "", [x], y, {}, "relu"))
        >>> lookup.op, lookup.inputs[1].constant[[0, 99, 100, 101]].tolist()
        ('lookup', [0, 0, 0, 1])
    """
    if node.op in ("activation", "unary"):
        return [_lookup(node, node.inputs[0], node.output, _function(node))]
    if node.op != "concat":
        return [node]
    nodes = []
    for index, x in enumerate(node.inputs):
        assert x is not None
        if x.scale != node.output.scale:
            y = Value(f"{x.name} rescaled", x.shape, None, torch.uint8, node.output.scale)
            nodes.append(_lookup(node, x, y, lambda value: value))
            node.inputs[index] = y
    return [*nodes, node]


def _function(node: Node) -> Callable[[Tensor], Tensor]:
    if node.op == "activation":
        return activation_module(node.activation)
    given: dict[str, Any] = node.attributes
    return lambda x: FUNCTIONS[given["kind"]](x, *given.get("numbers", ()))


def _lookup(node: Node, x: Value | None, y: Value, function: Callable[[Tensor], Tensor]) -> Node:
    assert x is not None and x.scale is not None and y.scale is not None
    table = Value(f"{y.name} table", (LEVELS + 1,), _table(function, x.scale, y.scale), torch.int8)
    return Node("lookup", node.name, [x, table], y)


def _table(function: Callable[[Tensor], Tensor], x: ActivationScale, y: ActivationScale) -> Tensor:
    """The bytes of a function of each byte, in the bits of int8: what is no number is the least."""
    numbers = (torch.arange(LEVELS + 1) - x.zero_point).float() * x.scale
    with torch.no_grad():
        results = function(numbers).nan_to_num(-math.inf, math.inf, -math.inf)
    return y.quantize(results).view(torch.int8)


def split_activations(graph: Graph, takes: Callable[[Node], bool]) -> None:
    """Let the activations be nodes again of those that have kernels of int8 only without: `takes`.

    Example:
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> graph = Graph([x], [Node("add", "", [x, x], y, activation="silu")], [y])
        >>> split_activations(graph, lambda node: True)
        >>> [(node.op, node.activation) for node in graph.nodes]
        [('add', 'none'), ('activation', 'silu')]
    """
    nodes = []
    for node in graph.nodes:
        nodes.append(node)
        if takes(node):
            before = Value(f"{node.output.name} before", node.output.shape)
            nodes.append(Node("activation", node.name, [before], node.output, {}, node.activation))
            node.output, node.activation = before, "none"
    graph.nodes = nodes
