"""Nodes whose output nothing reads, and reshapes that change nothing, go."""

from __future__ import annotations

from sparseinfer.export.graph import Graph

__all__ = ["remove_dead_code"]


def remove_dead_code(graph: Graph) -> None:
    """Remove what no output depends on, and reshapes to the shape that is there.

    Example:
        >>> from sparseinfer.export.graph import Node, Value
        >>> x, y, z = (Value(name, (2,)) for name in "xyz")
        >>> graph = Graph([x], [Node("add", "", [x, x], y), Node("reshape", "", [y], z)], [y])
        >>> remove_dead_code(graph)
        >>> [node.op for node in graph.nodes]
        ['add']
    """
    for node in graph.nodes:
        source = node.inputs[0]
        if node.op == "reshape" and source is not None and source.shape == node.output.shape:
            graph.replace(node.output, source)
    read = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.output in read:
            read.update(value for value in node.inputs if value is not None)
    graph.nodes = [node for node in graph.nodes if node.output in read]
