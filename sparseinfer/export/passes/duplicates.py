"""Nodes that compute what another did before them go: layers that make the same mask, for one."""

from __future__ import annotations

from collections.abc import Hashable

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["remove_duplicates"]

WEIGHTED = ("linear", "conv", "embedding")
"""Whose constants are large, and told apart by being others."""


def remove_duplicates(graph: Graph) -> None:
    """Let what reads the output of a node that stood before in the same words read the first's.

    Example:
        >>> x, a, b, y = (Value(name, (2,)) for name in "xaby")
        >>> twice = [Node("unary", "", [x], to, {"kind": "exp"}) for to in (a, b)]
        >>> graph = Graph([x], [*twice, Node("add", "", [a, b], y)], [y])
        >>> remove_duplicates(graph)
        >>> [node.output.name for node in graph.nodes], graph.nodes[1].inputs == [a, a]
        (['a', 'y'], True)
    """
    first: dict[Hashable, Value] = {}
    known: dict[Value, Hashable] = {}
    instead: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        node.inputs = [None if x is None else instead.get(x, x) for x in node.inputs]
        found = first.setdefault(_key(node, known), node.output)
        if found is node.output or node.output in graph.outputs:
            nodes.append(node)
        else:
            instead[node.output] = found
    graph.nodes = nodes


def _key(node: Node, known: dict[Value, Hashable]) -> Hashable:
    operands = tuple(_operand(node, value, known) for value in node.inputs)
    output = node.output
    return (
        node.op, node.activation, repr(sorted(node.attributes.items())), operands, output.shape,
        output.dtype, output.scale,
    )  # fmt: skip


def _operand(node: Node, value: Value | None, known: dict[Value, Hashable]) -> Hashable:
    """A constant by its elements, and anything else by itself."""
    if value is None or value.constant is None or node.op in WEIGHTED:
        return value
    if value not in known:
        elements = value.constant.detach().contiguous()
        known[value] = (value.shape, value.dtype, elements.numpy().tobytes())
    return known[value]
