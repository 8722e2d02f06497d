"""A constant that is added to what a layer without a bias gives becomes its bias."""

from __future__ import annotations

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["fold_biases"]


def fold_biases(graph: Graph) -> None:
    """Fold additions of a number a row into linear layers and convolutions that only they read.

    Example:
        >>> import torch
        >>> x, w, y, z = (Value(n, (2, 3)) for n in "xwyz")
        >>> b = Value("b", (3,), torch.ones(3))
        >>> nodes = [Node("linear", "fc", [x, w, None], y), Node("add", "", [y, b], z)]
        >>> graph = Graph([x], nodes, [z])
        >>> fold_biases(graph)
        >>> print(graph.nodes[0])
        z[2, 3] = linear(x, w, b)  # fc
    """
    for node in [node for node in graph.nodes if node.op == "add" and node.activation == "none"]:
        source, bias = node.inputs
        assert source is not None and bias is not None
        layer = graph.producers().get(source)
        if layer is None or not _takes(layer) or graph.uses()[source] != 1:
            continue
        axis = len(source.shape) - 1 if layer.op == "linear" else 1
        row = _row(bias, source.shape, axis)
        if row is not None:
            layer.inputs[2] = row
            layer.output = node.output
            graph.remove([node])


def _takes(node: Node) -> bool:
    is_layer = node.op in ("linear", "conv") and len(node.inputs) == 3
    return is_layer and node.inputs[2] is None and node.activation == "none"


def _row(bias: Value, shape: tuple[int, ...], axis: int) -> Value | None:
    """The numbers of a constant that does not change but along one axis."""
    if bias.constant is None or len(bias.shape) > len(shape):
        return None
    whole = bias.constant.reshape((1,) * (len(shape) - len(bias.shape)) + bias.shape)
    if any(size != 1 for at, size in enumerate(whole.shape) if at != axis):
        return None
    row = whole.reshape(-1).expand(shape[axis]).contiguous()
    return Value(bias.name, tuple(row.shape), row)
