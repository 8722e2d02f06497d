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
    producers = graph.producers()
    for node in list(graph.nodes):
        source = node.inputs[0]
        if node.op != "reshape" or source is None or source.shape != node.output.shape:
            continue
        before = producers.get(source)
        if before is None:
            graph.replace(node.output, source)
            continue
        # The name that is left is the last one, which is the model's own.
        graph.replace(source, node.output)
        before.output = node.output
        producers[node.output] = before
        graph.remove([node])
    read = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.output in read:
            read.update(value for value in node.inputs if value is not None)
    graph.nodes = [node for node in graph.nodes if node.output in read]
