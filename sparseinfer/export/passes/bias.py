"""What is added to the output of a layer becomes its bias, and a factor of it its weight's."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["fold_biases"]


def fold_biases(graph: Graph) -> None:
    """Fold terms and factors, a number a row or one, into layers that only they read.

    They are computed in float64 and rounded once.

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
    producers, uses = graph.producers(), graph.uses()
    gone = []
    for node in graph.nodes:
        kind = "add" if node.op == "add" else node.attributes.get("kind")
        if node.op not in ("add", "binary") or node.activation != "none":
            continue
        for source, own in (node.inputs, node.inputs[::-1])[: 1 if kind == "divide" else 2]:
            assert source is not None and own is not None
            layer = producers.get(source)
            if layer is None or not _takes(layer) or uses[source] != 1:
                continue
            axis = len(source.shape) - 1 if layer.op == "linear" else 1
            row = _row(own, source.shape, axis)
            if row is not None and FOLDS.get(str(kind), _none)(layer, row):
                layer.output = node.output
                producers[node.output] = layer
                gone.append(node)
                break
    graph.remove(gone)


def _takes(node: Node) -> bool:
    is_layer = node.op in ("linear", "conv") and len(node.inputs) == 3
    return is_layer and node.activation == "none"


def _add(layer: Node, row: Value) -> bool:
    bias = layer.inputs[2]
    if bias is None:
        layer.inputs[2] = row
        return True
    return _moved(layer, _wide(bias) + _wide(row))


def _multiply(layer: Node, row: Value) -> bool:
    return _scaled(layer, _wide(row))


def _divide(layer: Node, row: Value) -> bool:
    return bool(_wide(row).all()) and _scaled(layer, 1 / _wide(row))


def _none(layer: Node, row: Value) -> bool:
    return False


FOLDS = {"add": _add, "multiply": _multiply, "divide": _divide}


def _scaled(layer: Node, factor: Tensor) -> bool:
    """Weights that are quantised already keep their numbers."""
    weight, bias = layer.inputs[1], layer.inputs[2]
    if weight is None or weight.constant is None or weight.weight_scales is not None:
        return False
    whole = _wide(weight) * factor.view(-1, *[1] * (len(weight.shape) - 1))
    layer.inputs[1] = Value(f"{weight.name} scaled", weight.shape, whole.float())
    return bias is None or _moved(layer, _wide(bias) * factor)


def _moved(layer: Node, bias: Tensor) -> bool:
    own = layer.inputs[2]
    assert own is not None
    layer.inputs[2] = Value(f"{own.name} folded", own.shape, bias.float())
    return True


def _wide(value: Value) -> Tensor:
    assert value.constant is not None
    return value.constant.double()


def _row(bias: Value, shape: tuple[int, ...], axis: int) -> Value | None:
    """The numbers of a constant that does not change but along one axis."""
    if bias.constant is None or len(bias.shape) > len(shape):
        return None
    whole = bias.constant.reshape((1,) * (len(shape) - len(bias.shape)) + bias.shape)
    if any(size != 1 for at, size in enumerate(whole.shape) if at != axis):
        return None
    row = whole.reshape(-1).expand(shape[axis]).contiguous()
    return Value(bias.name, tuple(row.shape), row)
