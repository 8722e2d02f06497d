"""Functions of each element that are no activation of the layers."""

from __future__ import annotations

import math

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.binary import operand
from sparseinfer.export.lowering.table import LOWERINGS, Call, Lowering, Refusal, lowers

aten = torch.ops.aten


def _unary(kind: str) -> Lowering:
    return lambda call: call.add("unary", [call.value(0)], kind=kind)


def _activation(kind: str) -> Lowering:
    return lambda call: call.add("activation", [call.value(0)], kind)


LOWERINGS[aten.hardswish.default] = _activation("hardswish")
LOWERINGS[aten.hardsigmoid.default] = _activation("hardsigmoid")

for _kind, _target in {
    "abs": aten.abs.default, "exp": aten.exp.default, "log": aten.log.default,
    "sqrt": aten.sqrt.default, "rsqrt": aten.rsqrt.default, "erf": aten.erf.default,
    "sin": aten.sin.default, "cos": aten.cos.default, "floor": aten.floor.default,
    "ceil": aten.ceil.default, "round": aten.round.default,
}.items():  # fmt: skip
    LOWERINGS[_target] = _unary(_kind)


@lowers(aten.hardtanh.default, aten.clamp.default)
def _clamp(call: Call) -> Value:
    is_clamp = "clamp" in call.name
    low = call.argument(1, "min" if is_clamp else "min_val", None if is_clamp else -1.0)
    high = call.argument(2, "max" if is_clamp else "max_val", None if is_clamp else 1.0)
    low = -math.inf if low is None else float(low)
    high = math.inf if high is None else float(high)
    if (low, high) in ((0, math.inf), (0, 6)):
        return call.add("activation", [call.value(0)], "relu" if high > 6 else "relu6")
    return call.add("unary", [call.value(0)], kind="clamp", numbers=[low, high])


@lowers(aten.leaky_relu.default)
def _leaky_relu(call: Call) -> Value:
    slope = float(call.argument(1, "negative_slope", 0.01))
    return call.add("unary", [call.value(0)], kind="leaky_relu", numbers=[slope])


@lowers(aten.elu.default)
def _elu(call: Call) -> Value:
    x, alpha = call.value(0), float(call.argument(1, "alpha", 1))
    scale, inside = call.argument(2, "scale", 1), call.argument(3, "input_scale", 1)
    if inside != 1:
        raise Refusal(f"it multiplies its operand by {inside}")
    if scale == 1:
        return call.add("unary", [x], kind="elu", numbers=[alpha])
    y = call.step("elu", x.shape, "unary", [x], kind="elu", numbers=[alpha])
    return call.add("binary", [y, operand(call, scale)], kind="multiply")


@lowers(aten.softplus.default)
def _softplus(call: Call) -> Value:
    numbers = [float(call.argument(1, "beta", 1)), float(call.argument(2, "threshold", 20))]
    return call.add("unary", [call.value(0)], kind="softplus", numbers=numbers)


@lowers(aten._log_softmax.default)
def _log_softmax(call: Call) -> Value:
    """x - max - log(sum(exp(x - max))): of a small probability the softmax itself would be 0."""
    x = call.value(0)
    axis = call.args[1] % len(x.shape)
    narrow = tuple(1 if i == axis else size for i, size in enumerate(x.shape))
    over = {"axes": [axis], "keepdim": True}
    most = call.step("most", narrow, "reduce", [x], kind="maximum", **over)
    below = call.step("below", x.shape, "binary", [x, most], kind="subtract")
    powers = call.step("powers", x.shape, "unary", [below], kind="exp")
    total = call.step("total", narrow, "reduce", [powers], kind="sum", **over)
    log = call.step("log", narrow, "unary", [total], kind="log")
    return call.add("binary", [below, log], kind="subtract")
