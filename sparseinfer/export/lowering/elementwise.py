"""Activations, additions and softmax."""

from __future__ import annotations

import math

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import LOWERINGS, Call, Lowering, Refusal, lowers

aten = torch.ops.aten


def _activation(kind: str) -> Lowering:
    return lambda call: call.add("activation", [call.value(0)], kind)


for _target, _kind in {
    aten.relu.default: "relu", aten.relu_.default: "relu", aten.relu6.default: "relu6",
    aten.silu.default: "silu", aten.sigmoid.default: "sigmoid", aten.tanh.default: "tanh",
}.items():  # fmt: skip
    LOWERINGS[_target] = _activation(_kind)


@lowers(aten.gelu.default)
def _gelu(call: Call) -> Value:
    kind = "gelu" if call.argument(1, "approximate", "none") == "none" else "gelu_tanh"
    return call.add("activation", [call.value(0)], kind)


@lowers(aten.hardtanh.default, aten.clamp.default)
def _clamp(call: Call) -> Value:
    is_clamp = "clamp" in call.name
    low = call.argument(1, "min" if is_clamp else "min_val", None if is_clamp else -1.0)
    high = call.argument(2, "max" if is_clamp else "max_val", None if is_clamp else 1.0)
    if low == 0 and high in (None, math.inf):
        return call.add("activation", [call.value(0)], "relu")
    if low == 0 and high == 6:
        return call.add("activation", [call.value(0)], "relu6")
    raise Refusal(f"it clamps to [{low}, {high}]: [0, 6] and [0, inf] are taken")


@lowers(aten.add.Tensor)
def _add(call: Call) -> Value:
    a, b = call.args[0], call.args[1]
    if call.kwargs.get("alpha", 1) != 1:
        raise Refusal("its alpha is not 1")
    if not isinstance(a, Value) or not isinstance(b, Value):
        raise Refusal("it adds tensors of different shapes, or a number")
    a, b = (_repeated(value, call.shape) for value in (a, b))
    if a.shape != b.shape:
        raise Refusal("it adds tensors of different shapes, or a number")
    return call.add("add", [a, b])


def _repeated(value: Value, shape: tuple[int, ...]) -> Value:
    """A constant as large as what it is added to; other values as they are."""
    if value.constant is None or value.shape == shape:
        return value
    return Value(f"{value.name} repeated", shape, value.constant.expand(shape).contiguous())


@lowers(aten._softmax.default)
def _softmax(call: Call) -> Value:
    x = call.value(0)
    return call.add("softmax", [x], axis=call.args[1] % len(x.shape))
