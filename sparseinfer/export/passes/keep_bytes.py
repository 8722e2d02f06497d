"""What stands between `dequantize` and `quantize` computes on bytes, where there is a kernel.

A quantised model says that bytes become floats, a layer computes on them, and its output is rounded
to bytes. With a kernel of int8 the layer does all of that; the rest stays as the model has it.
"""

from __future__ import annotations

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.passes.byte_nodes import byte_form
from sparseinfer.export.passes.quantize import (
    SAME_SCALE,
    is_weighted,
    passes_bytes,
    quantize_depthwise,
)
from sparseinfer.quantize.activations import ActivationScale

__all__ = ["keep_bytes"]


def keep_bytes(graph: Graph) -> None:
    """Let nodes read the bytes that their operands were, and give those that their readers want.

    A weight is taken by the scales that it was quantised by: one without stays in float32.

    Example:
        >>> import torch
        >>> scale = ActivationScale(0.5, 7)
        >>> bytes_ = Value("bytes", (2, 4), None, torch.uint8, scale)
        >>> x, y = Value("x", (2, 4)), Value("y", (2, 3))
        >>> w = Value("w", (3, 4), torch.ones(3, 4), weight_scales=torch.ones(3))
        >>> nodes = [Node("dequantize", "", [bytes_], x), Node("linear", "fc", [x, w, None], y)]
        >>> graph = Graph([], nodes, [y])
        >>> keep_bytes(graph)
        >>> print(graph.nodes[1])
        y[2, 3] = linear(bytes, w, -)  # fc
    """
    floats = {node.output: node for node in graph.nodes if node.op == "dequantize"}
    for node in list(graph.nodes):
        if node.op == "quantize":
            _rounded_again(graph, node, floats)
            continue
        takes = is_weighted(node) and _has_scales(node)
        if not takes and not passes_bytes(node):
            continue
        read = [own for own in node.inputs if own is not None and own.constant is None]
        if not read or not all(own in floats for own in read):
            continue
        rounded = _rounded(graph, node.output)
        if takes:
            _read_bytes(node, floats)
            if rounded is not None:
                _give_bytes(graph, node, rounded)
            if node.op == "depthwise_conv":
                quantize_depthwise(node)
        elif rounded is not None:
            source = floats[read[0]].inputs[0]
            assert source is not None
            if node.op not in SAME_SCALE or source.scale == rounded.scale:
                _read_bytes(node, floats)
                _give_bytes(graph, node, rounded)
                at = graph.nodes.index(node)
                graph.nodes[at : at + 1] = byte_form(node)


def _has_scales(node: Node) -> bool:
    weight = node.inputs[1]
    return weight is not None and weight.weight_scales is not None


def _read_bytes(node: Node, floats: dict[Value, Node]) -> None:
    node.inputs = [floats[own].inputs[0] if own in floats else own for own in node.inputs]


def _rounded(graph: Graph, value: Value) -> Value | None:
    """The bytes that all readers of a value want, if they want the same."""
    if value in graph.outputs:
        return None
    readers = [node for node in graph.nodes if value in node.inputs]
    scales: set[ActivationScale | None] = {node.output.scale for node in readers}
    if not readers or len(scales) > 1 or any(node.op != "quantize" for node in readers):
        return None
    return readers[0].output


def _give_bytes(graph: Graph, node: Node, rounded: Value) -> None:
    readers = [own for own in graph.nodes if own.op == "quantize" and own.inputs == [node.output]]
    for reader in readers[1:]:
        graph.replace(reader.output, rounded)
    node.output = rounded
    graph.remove(readers)


def _rounded_again(graph: Graph, node: Node, floats: dict[Value, Node]) -> None:
    """Bytes that become floats and the same bytes again stay what they are."""
    before = floats.get(node.inputs[0]) if node.inputs[0] is not None else None
    source = None if before is None else before.inputs[0]
    if source is not None and source.scale == node.output.scale:
        graph.replace(node.output, source)
        graph.remove([node])
