"""An activation becomes the last step of the node that only it reads."""

from __future__ import annotations

from sparseinfer.export.graph import Graph, Node, Value

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
        moves, before = _before(graph, source)
        if before is None or before.op not in TAKES or before.activation != "none":
            continue
        before.activation = node.activation
        (moves[0] if moves else before).output = node.output
        graph.remove([node])


def _before(graph: Graph, value: Value) -> tuple[list[Node], Node | None]:
    """What computes a value that is read once, and the reshapes of it on the way, the last first.

    An activation of what was reshaped is one of what was there before.
    """
    producers, uses = graph.producers(), graph.uses()
    moves: list[Node] = []
    while uses[value] == 1 and value in producers:
        node = producers[value]
        if node.op != "reshape" or node.inputs[0] is None:
            return moves, node
        moves.append(node)
        value = node.inputs[0]
    return moves, None
