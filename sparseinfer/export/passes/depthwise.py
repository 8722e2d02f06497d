"""Convolutions in which every channel has a kernel of its own are told from the others."""

from __future__ import annotations

from sparseinfer.export.graph import Graph

__all__ = ["find_depthwise"]


def find_depthwise(graph: Graph) -> None:
    """Let depthwise 2-d convolutions without dilation be `depthwise_conv`, which is not packed.

    Example:
        >>> from sparseinfer.export.graph import Node, Value
        >>> x, w, y = Value("x", (1, 8, 4, 4)), Value("w", (8, 1, 3, 3)), Value("y", (1, 8, 4, 4))
        >>> node = Node("conv", "", [x, w, None], y, {"groups": 8, "dilation": [1, 1]})
        >>> find_depthwise(Graph([x], [node], [y]))
        >>> node.op
        'depthwise_conv'
    """
    for node in graph.nodes:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op != "conv" or weight is None or len(weight.shape) != 4:
            continue
        alone = node.attributes["groups"] == weight.shape[0] and weight.shape[1] == 1
        if alone and node.attributes["dilation"] == [1, 1]:
            node.op = "depthwise_conv"
