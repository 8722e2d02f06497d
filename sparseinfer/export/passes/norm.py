"""An addition that only a norm reads becomes part of the norm."""

from __future__ import annotations

from sparseinfer.export.graph import Graph, Node

__all__ = ["fuse_norm_residuals"]


def fuse_norm_residuals(graph: Graph) -> None:
    """Fuse additions into the norms over what they give.

    Example:
        >>> from sparseinfer.export.graph import Node, Value
        >>> x, s, y = (Value(n, (2, 4)) for n in "xsy")
        >>> nodes = [Node("add", "", [x, x], s), Node("layer_norm", "", [s, None, None], y)]
        >>> graph = Graph([x], nodes, [y])
        >>> fuse_norm_residuals(graph)
        >>> str(graph.nodes[0])
        'y[2, 4] = layer_norm(x, -, -, x)  # '
    """
    producers, uses = graph.producers(), graph.uses()
    gone = []
    for node in graph.nodes:
        source = node.inputs[0]
        add = None if source is None else producers.get(source)
        if node.op != "layer_norm" or add is None or add.op != "add" or len(node.inputs) > 3:
            continue
        if uses[add.output] == 1 and add.activation == "none" and _alike(add):
            node.inputs = [add.inputs[0], *node.inputs[1:], add.inputs[1]]
            gone.append(add)
    graph.remove(gone)


def _alike(add: Node) -> bool:
    """Whether both operands have the shape of the sum: a norm repeats none of them."""
    return all(value is not None and value.shape == add.output.shape for value in add.inputs)
