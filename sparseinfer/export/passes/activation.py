"""An activation becomes the last step of the node that only it reads."""

from __future__ import annotations

from sparseinfer.export.graph import Graph

__all__ = ["fuse_activations"]

TAKES = ("linear", "conv", "depthwise_conv", "add", "binary")


def fuse_activations(graph: Graph) -> None:
    """Fuse activations into the nodes before them.

    Example:
        >>> from sparseinfer.export.graph import Node, Value
        >>> x, s, y = (Value(n, (2,)) for n in "xsy")
        >>> nodes = [Node("add", "", [x, x], s), Node("activation", "", [s], y, {}, "relu")]
        >>> graph = Graph([x], nodes, [y])
        >>> fuse_activations(graph)
        >>> graph.nodes[0].activation, graph.nodes[0].output.name, len(graph.nodes)
        ('relu', 'y', 1)
    """
    for node in [node for node in graph.nodes if node.op == "activation"]:
        source = node.inputs[0]
        assert source is not None
        before = graph.producers().get(source)
        if before is None or before.op not in TAKES or before.activation != "none":
            continue
        if graph.uses()[source] == 1:
            before.activation = node.activation
            before.output = node.output
            graph.remove([node])
