"""Convolutions in which every channel has a kernel of its own are told from the others."""

from __future__ import annotations

from sparseinfer.export.graph import MOST_COLUMNS, Graph

__all__ = ["find_depthwise"]


def find_depthwise(graph: Graph) -> None:
    """Let depthwise 2-d convolutions without dilation be `depthwise_conv`, which is not packed.

    Rows of more than `MOST_COLUMNS` are left to grouped convolutions.

    Example:
        >>> from sparseinfer.export.graph import Node, Value
        >>> x, w, y = Value("x", (1, 8, 4, 4)), Value("w", (8, 1, 3, 3)), Value("y", (1, 8, 4, 4))
        >>> given = {"groups": 8, "dilation": [1, 1], "padding": [1, 1, 1, 1]}
        >>> node = Node("conv", "", [x, w, None], y, given)
        >>> find_depthwise(Graph([x], [node], [y]))
        >>> node.op
        'depthwise_conv'
    """
    for node in graph.nodes:
        x, weight = (*node.inputs, None)[:2]
        if node.op != "conv" or x is None or weight is None or len(weight.shape) != 4:
            continue
        alone = node.attributes["groups"] == weight.shape[0] and weight.shape[1] == 1
        columns = x.shape[3] + sum(node.attributes["padding"][2:])
        if alone and node.attributes["dilation"] == [1, 1] and columns <= MOST_COLUMNS:
            node.op = "depthwise_conv"
