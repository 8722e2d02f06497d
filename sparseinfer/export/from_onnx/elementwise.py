"""Activations, clamps and additions."""

from __future__ import annotations

import math

import torch

from sparseinfer.export.from_onnx.table import OPERATORS, Call, Converter, Refusal, converts
from sparseinfer.export.graph import Node, Value

__all__ = ["multiply"]

ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}

HIGHEST = torch.finfo(torch.float32).max


def _activation(kind: str) -> Converter:
    return lambda call: call.add("activation", [call.computed(0)], kind)


for _name, _kind in ACTIVATIONS.items():
    OPERATORS[_name] = _activation(_kind)


@converts("Gelu")
def _gelu(call: Call) -> Value:
    kind = {"none": "gelu", "tanh": "gelu_tanh"}[call.attribute("approximate", "none")]
    return call.add("activation", [call.computed(0)], kind)


@converts("Clip")
def _clip(call: Call) -> Value:
    low = call.number(1, -math.inf)
    high = call.number(2, math.inf)
    if low <= -HIGHEST and high >= HIGHEST:
        return call.computed(0)
    if low == 0 and high >= HIGHEST:
        return call.add("activation", [call.computed(0)], "relu")
    if low == 0 and high == 6:
        return call.add("activation", [call.computed(0)], "relu6")
    raise Refusal(f"it clamps to [{low}, {high}]: [0, 6] and [0, inf] are taken")


@converts("Add")
def _add(call: Call) -> Value:
    a, b = call.value(0), call.value(1)
    if a.constant is not None:
        a, b = b, a
    if a.constant is not None or a.shape != call.shape:
        raise Refusal("it adds tensors of different shapes")
    if b.constant is None and b.shape != a.shape:
        raise Refusal("it adds tensors of different shapes")
    return call.add("add", [a, b])


def multiply(call: Call) -> Value:
    """A product of floats; those of scales are in `quantized`."""
    a, b = call.value(0), call.value(1)
    for x, gate in ((a, b), (b, a)):
        node = _computes(call, gate)
        if node is not None and node.activation == "sigmoid" and node.inputs == [x]:
            return call.add("activation", [x], "silu")
    raise Refusal("it multiplies other things than x and sigmoid(x)")


def _computes(call: Call, value: Value) -> Node | None:
    return next((own for own in reversed(call.graph.nodes) if own.output is value), None)
