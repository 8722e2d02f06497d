"""What a quantised graph must give, step by step in torch: sums in float64, where they are exact,
and products with one addition in float64 too, rounded to float32 once, as a fused one is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.quantize import ActivationScale, quantize_weight
from sparseinfer.quantize.activations import reciprocal

__all__ = ["evaluate"]


def evaluate(graph: Graph, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of a graph of bytes and floats, of no other operators than those below."""
    known: dict[Value, Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        known[node.output] = _run(node, known)
        assert tuple(known[node.output].shape) == node.output.shape
    return [known[value] for value in graph.outputs]


def _run(node: Node, known: dict[Value, Tensor]) -> Tensor:
    source, output = node.inputs[0], node.output
    assert source is not None
    x = known[source]
    if node.op == "quantize":
        return _requantized(x, output, "none")
    if source.dtype == torch.float32:
        return _plain(node, x)
    assert source.scale is not None
    whole = x.double() - source.scale.zero_point
    step = torch.tensor(source.scale.scale, dtype=torch.float32)
    if node.op == "dequantize":
        return whole.float() * step
    if node.op in ("linear", "conv", "depthwise_conv"):
        return _weighted(node, whole, step, known)
    if node.op == "reshape":
        return x.reshape(output.shape)
    if node.op == "max_pool":
        return _pooled(node, x.float()).to(torch.uint8)
    if node.op == "lookup":
        table = node.inputs[1]
        assert table is not None and table.constant is not None
        return table.constant.view(torch.uint8)[x.long()]
    if node.op == "concat":
        parts = [value for value in node.inputs if value is not None]
        assert all(value.scale == output.scale for value in parts)
        return torch.cat([known[value] for value in parts], node.attributes["axis"])
    if node.op == "slice":
        return _sliced(node, x)
    if node.op == "resize":
        mode = {"nearest": "nearest", "nearest_exact": "nearest-exact"}[node.attributes["kind"]]
        return F.interpolate(x.float(), output.shape[2:], mode=mode).to(torch.uint8)
    if node.op == "average_pool":
        return _averaged(node, whole, step)
    if node.op == "add":
        second = node.inputs[1]
        assert second is not None and second.scale is not None
        other = (known[second].float() - second.scale.zero_point) * second.scale.scale
        return _requantized(_fma(whole, step, other), output, node.activation)
    assert node.op == "global_average_pool"
    mean = whole.sum((2, 3)).float() * (step / (x.shape[2] * x.shape[3]))
    return _requantized(mean.reshape(output.shape), output, "none")


def _plain(node: Node, x: Tensor) -> Tensor:
    """What stays in float32 in the networks of the tests: what moves values and rounds none."""
    if node.op == "reshape":
        return x.reshape(node.output.shape)
    assert node.op == "max_pool"
    return _pooled(node, x)


def _pooled(node: Node, x: Tensor) -> Tensor:
    given = node.attributes
    top, _, left, _ = given["padding"]
    return F.max_pool2d(x, given["kernel"], given["stride"], (top, left))


def _sliced(node: Node, x: Tensor) -> Tensor:
    given = node.attributes
    count = node.output.shape[given["axis"]]
    places = torch.arange(count) * given["step"] + given["start"]
    return x.index_select(given["axis"], places)


def _averaged(node: Node, whole: Tensor, step: Tensor) -> Tensor:
    """Sums of windows, times the step by as many elements as each mean is over."""
    given = node.attributes
    top, bottom, left, right = given["padding"]
    high, wide = given["kernel"]

    def sums(x: Tensor) -> Tensor:
        padded = F.pad(x, (left, right, top, bottom))
        return F.avg_pool2d(padded, (high, wide), given["stride"], divisor_override=1)

    counts = sums(torch.ones_like(whole))
    if given.get("count_padding"):
        counts = torch.full_like(counts, high * wide)
    means = sums(whole).round().float() * (step / counts.float())
    return _requantized(means, node.output, "none")


def _weighted(node: Node, whole: Tensor, step: Tensor, known: dict[Value, Tensor]) -> Tensor:
    weight, bias = node.inputs[1], node.inputs[2]
    assert weight is not None and weight.constant is not None
    if weight.dtype == torch.int8:
        scales = node.inputs[3]
        assert scales is not None and scales.constant is not None
        values, by_row = weight.constant.double(), scales.constant
    else:
        small = quantize_weight(weight.constant)
        values, by_row = small.values.double(), small.scales
    if node.op == "linear":
        sums, axes = whole @ values.T, 0
    else:
        given = node.attributes
        top, bottom, left, right = given["padding"]
        padded = F.pad(whole, (left, right, top, bottom))
        sums = F.conv2d(
            padded, values, None, given["stride"], 0, given["dilation"], given["groups"]
        )
        axes = 2
    shape = [-1] + [1] * axes
    shift = torch.zeros(len(values)) if bias is None else bias.constant
    assert shift is not None
    y = _fma(sums.float(), (by_row * step).reshape(shape), shift.reshape(shape))
    residual = node.inputs[3] if node.op == "conv" and len(node.inputs) > 3 else None
    if residual is not None:
        assert residual.scale is not None
        more = known[residual].float() - residual.scale.zero_point
        y = _fma(more, torch.tensor(residual.scale.scale, dtype=torch.float32), y)
    if node.output.dtype == torch.uint8:
        return _requantized(y, node.output, node.activation)
    return {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[node.activation](y)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a.double() * b.double() + c.double()).float()


def _requantized(y: Tensor, output: Value, activation: str) -> Tensor:
    assert isinstance(output.scale, ActivationScale)
    inverse, zero = reciprocal(output.scale.scale), output.scale.zero_point
    low = -zero if activation == "none" else max(-zero, 0)
    high = min(255.0 - zero, float(torch.tensor(6.0) * inverse) if activation == "relu6" else 255.0)
    return (torch.round((y * inverse).clamp(low, high)) + zero).to(torch.uint8)
