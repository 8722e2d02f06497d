"""Nodes that have kernels of int8 take bytes, and others floats, with changes between the two.

A value is bytes where a node of int8 gives it and another reads it. Weighted nodes compute in int8;
what stands between them does where both of its ends are bytes. Bytes of a pooling or of another
shape keep the scale of what they were made from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.passes.byte_nodes import byte_form
from sparseinfer.quantize.activations import ActivationScale
from sparseinfer.quantize.weights import quantize_weight

__all__ = [
    "SAME_SCALE", "is_weighted", "passes_bytes", "quantize", "quantize_depthwise",
    "values_to_observe", "waits_for_its_activation",
]  # fmt: skip

SAME_SCALE = ("max_pool", "reshape", "slice", "resize")
FUNCTIONS = ("activation", "unary")
"""What a table computes on bytes."""

PASSING = (*SAME_SCALE, *FUNCTIONS, "add", "global_average_pool", "average_pool", "concat")
BYTES_ONLY = (*PASSING, "depthwise_conv")
"""What gives bytes wherever it takes them; others give floats to a reader of floats."""

CLAMPS = ("none", "relu", "relu6")
LOOKED_UP = ("hardswish", "hardsigmoid")
DEPTHWISE_KERNELS = (3, 5, 7)
MOST_COLUMNS = 65535
"""Of an int8 weight: of more an int32 would not hold the sums."""

MOST_PIXELS = (2**31 - 1) // 255
"""Likewise of an image whose mean is taken."""


def values_to_observe(graph: Graph) -> list[Value]:
    """The values whose scales `quantize` asks for.

    Example:
        >>> x, w, y = Value("x", (2, 4)), Value("w", (3, 4), torch.ones(3, 4)), Value("y", (2, 3))
        >>> graph = Graph([x], [Node("linear", "", [x, w, None], y)], [y])
        >>> [value.name for value in values_to_observe(graph)]
        ['x']
    """
    chosen = _chosen(graph)
    found = dict.fromkeys(
        value
        for node in graph.nodes
        if node.output in chosen
        for value in (*_read(node), *_bytes_given(node))
        if value not in chosen or chosen[value].op not in SAME_SCALE
    )
    return list(found)


def quantize(graph: Graph, scales: Mapping[Value, ActivationScale]) -> None:
    """Let what has kernels of int8 compute in it, by the scales of `values_to_observe`.

    Raises:
        ValueError: a weight holds NaN or Inf, or cannot be scaled; see `weight_scales`.

    Example:
        >>> x, w, y = Value("x", (2, 4)), Value("w", (3, 4), torch.ones(3, 4)), Value("y", (2, 3))
        >>> graph = Graph([x], [Node("linear", "fc", [x, w, None], y)], [y])
        >>> quantize(graph, {x: ActivationScale(0.5, 7)})
        >>> print(graph)
        inputs x[2, 4]
        x bytes[2, 4] uint8 = quantize(x)  # fc
        y[2, 3] = linear(x bytes, w, -)  # fc
        outputs y[2, 3]
    """
    chosen = _chosen(graph)
    scales = _shared_scales(graph, chosen, scales)
    read_as_bytes = {
        value for node in graph.nodes if node.output in chosen for value in _read(node)
    }
    as_bytes: dict[Value, Value] = {}
    floats = {value for value in graph.inputs}
    nodes: list[Node] = []

    def bytes_of(value: Value) -> Value:
        if value not in as_bytes:
            as_bytes[value] = _bytes(value, scales[value])
            nodes.append(Node("quantize", node.name, [value], as_bytes[value]))
        return as_bytes[value]

    def floats_of(value: Value) -> Value:
        if value.constant is None and value not in floats:
            floats.add(value)
            nodes.append(Node("dequantize", "", [as_bytes[value]], value))
        return value

    for node in graph.nodes:
        takes_bytes = node.output in chosen
        of = bytes_of if takes_bytes else floats_of
        read = set(_read(node))
        node.inputs = [of(value) if value in read else value for value in node.inputs]
        if takes_bytes and node.op == "depthwise_conv":
            quantize_depthwise(node)
        if takes_bytes and (node.output in read_as_bytes or node.op in BYTES_ONLY):
            source = node.inputs[0]
            assert source is not None
            scale = source.scale if node.op in SAME_SCALE else scales[node.output]
            assert scale is not None
            as_bytes[node.output] = _bytes(node.output, scale)
            node.output = as_bytes[node.output]
            nodes += byte_form(node)
        else:
            floats.add(node.output)
            nodes.append(node)
    for value in graph.outputs:
        floats_of(value)
    graph.nodes = nodes


def _shared_scales(
    graph: Graph, chosen: Mapping[Value, Node], scales: Mapping[Value, ActivationScale]
) -> dict[Value, ActivationScale]:
    """Of what only a concatenation reads the scale is that of the whole: its bytes are copied."""
    shared, uses = dict(scales), graph.uses()
    for node in reversed(list(chosen.values())):
        if node.op == "concat":
            for value in _read(node):
                if uses[value] == 1 and chosen[value].op not in SAME_SCALE:
                    shared[value] = shared[node.output]
    return shared


def _bytes(value: Value, scale: ActivationScale) -> Value:
    return Value(f"{value.name} bytes", value.shape, None, torch.uint8, scale)


def _read(node: Node) -> list[Value]:
    """What a node reads and a model does not hold."""
    return [value for value in node.inputs if value is not None and value.constant is None]


def _bytes_given(node: Node) -> list[Value]:
    return [node.output] if node.op == "depthwise_conv" else []


def _chosen(graph: Graph) -> dict[Value, Node]:
    """The nodes that compute in int8, by their outputs."""
    chosen: dict[Value, Node] = {}
    for node in graph.nodes:
        passing = passes_bytes(node) and all(value in chosen for value in _read(node))
        if passing or is_weighted(node):
            chosen[node.output] = node
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for value in _read(node):
            readers.setdefault(value, []).append(node)
    for node in reversed(graph.nodes):
        if node.output in chosen and node.op in PASSING:
            # What only floats are made of is not rounded before.
            if not any(reader.output in chosen for reader in readers.get(node.output, [])):
                del chosen[node.output]
    return chosen


def is_weighted(node: Node) -> bool:
    """Whether a node has a weight and a kernel of int8."""
    return _has_kernel(node) and (node.op != "depthwise_conv" or node.activation in CLAMPS)


def waits_for_its_activation(node: Node) -> bool:
    """Whether a node has a kernel of int8, but an activation that bytes are looked up for.

    `linear` and `conv` compute any in float32; of hardswish and hardsigmoid, MobileNetV3's, a
    lookup takes less than that.
    """
    return _has_kernel(node) and (not is_weighted(node) or node.activation in LOOKED_UP)


def _has_kernel(node: Node) -> bool:
    if node.op not in ("linear", "conv", "depthwise_conv"):
        return False
    weight = node.inputs[1]
    assert weight is not None and weight.constant is not None
    if node.op != "depthwise_conv":
        return weight.constant[0].numel() <= MOST_COLUMNS
    height, width = weight.shape[2:]
    down, right = node.attributes["stride"]
    return height == width and height in DEPTHWISE_KERNELS and down == right and down in (1, 2)


def passes_bytes(node: Node) -> bool:
    """Whether a node without a weight has a kernel of int8, that gives bytes of bytes."""
    source = node.inputs[0]
    assert source is not None
    if node.op == "global_average_pool":
        return source.shape[2] * source.shape[3] <= MOST_PIXELS
    if node.op == "average_pool":
        high, wide = node.attributes["kernel"]
        return bool(high * wide <= MOST_PIXELS)
    if node.op == "resize":
        return node.attributes["kind"] in ("nearest", "nearest_exact")
    if node.op in FUNCTIONS:
        return True
    return node.op in PASSING and node.activation in CLAMPS


def quantize_depthwise(node: Node) -> None:
    """Its weight is as it is in the file, and its scales an operand more."""
    weight, bias = node.inputs[1], node.inputs[2]
    assert weight is not None and weight.constant is not None
    small = quantize_weight(weight.constant, weight.weight_scales)
    node.inputs[1:] = [
        Value(weight.name, weight.shape, small.values, torch.int8), bias,
        Value(f"{weight.name} scales", tuple(small.scales.shape), small.scales),
    ]  # fmt: skip
