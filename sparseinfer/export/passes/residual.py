"""An addition of what a convolution has just given becomes part of the convolution."""

from __future__ import annotations

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["fuse_residuals"]


def fuse_residuals(graph: Graph) -> None:
    """Fuse additions into convolutions that only they read.

    Such a convolution moves to where the addition stood, so that the other operand is there.

    Example:
        >>> from sparseinfer.export.graph import Node, Value
        >>> x, w, c, y = (Value(n, (1, 1, 1, 1)) for n in "xwcy")
        >>> conv = Node("conv", "a", [x, w, None], c)
        >>> graph = Graph([x], [conv, Node("add", "", [x, c], y)], [y])
        >>> fuse_residuals(graph)
        >>> print(graph)
        inputs x[1, 1, 1, 1]
        y[1, 1, 1, 1] = conv(x, w, -, x)  # a
        outputs y[1, 1, 1, 1]
    """
    for node in [node for node in graph.nodes if node.op == "add"]:
        producers, uses = graph.producers(), graph.uses()
        for operand, other in (node.inputs, node.inputs[::-1]):
            assert operand is not None and other is not None
            conv = producers.get(operand)
            if conv is not None and uses[operand] == 1 and _takes(conv):
                _fuse(graph, conv, node, other)
                break


def _takes(node: Node) -> bool:
    return node.op == "conv" and node.activation == "none" and len(node.inputs) == 3


def _fuse(graph: Graph, conv: Node, add: Node, other: Value) -> None:
    conv.inputs = [*conv.inputs, other]
    conv.output = add.output
    conv.activation = add.activation
    graph.nodes.remove(conv)
    graph.nodes[graph.nodes.index(add)] = conv
