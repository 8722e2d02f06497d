"""Arithmetic of two tensors, or of a tensor and a number, broadcast as numpy does."""

from __future__ import annotations

from typing import Any

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import LOWERINGS, Call, Lowering, Refusal, lowers

aten = torch.ops.aten


def operand(call: Call, given: Any) -> Value:
    """A tensor as it is, and a number as a constant."""
    if isinstance(given, Value):
        return given
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise Refusal(f"expected a tensor or a number, got {given!r}")
    number = torch.tensor(float(given), dtype=torch.float32)
    return Value(f"{call.name} {given}", (), number)


def _binary(kind: str) -> Lowering:
    def lower(call: Call) -> Value:
        a, b = (operand(call, part) for part in call.args[:2])
        return call.add("binary", [a, b], kind=kind)

    return lower


for _kind, _targets in {
    "multiply": (aten.mul.Tensor, aten.mul.Scalar),
    "divide": (aten.div.Tensor, aten.div.Scalar),
    "minimum": (aten.minimum.default,),
    "maximum": (aten.maximum.default,),
    "power": (aten.pow.Tensor_Tensor, aten.pow.Scalar),
}.items():
    LOWERINGS.update(dict.fromkeys(_targets, _binary(_kind)))


@lowers(aten.add.Tensor, aten.add.Scalar)
def _add(call: Call) -> Value:
    a, b = operand(call, call.args[0]), _scaled(call)
    return _sum(call, a, b)


def _sum(call: Call, a: Value, b: Value) -> Value:
    if a.shape == b.shape and a.constant is None and b.constant is None:
        return call.add("add", [a, b])
    return call.add("binary", [a, b], kind="add")


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def _subtract(call: Call) -> Value:
    return call.add("binary", [operand(call, call.args[0]), _scaled(call)], kind="subtract")


def _scaled(call: Call) -> Value:
    """The second operand, times alpha."""
    b, alpha = operand(call, call.args[1]), call.argument(2, "alpha", 1)
    if alpha == 1:
        return b
    return call.step("scaled", b.shape, "binary", [b, operand(call, alpha)], kind="multiply")


@lowers(aten.rsub.Scalar)
def _reversed_subtract(call: Call) -> Value:
    if call.argument(2, "alpha", 1) != 1:
        raise Refusal("its alpha is not 1")
    return call.add("binary", [operand(call, call.args[1]), call.value(0)], kind="subtract")


@lowers(aten.neg.default)
def _negative(call: Call) -> Value:
    return call.add("binary", [call.value(0), operand(call, -1.0)], kind="multiply")


@lowers(aten.reciprocal.default)
def _reciprocal(call: Call) -> Value:
    return call.add("binary", [operand(call, 1.0), call.value(0)], kind="divide")


@lowers(aten.pow.Tensor_Scalar)
def _power(call: Call) -> Value:
    x, exponent = call.value(0), call.args[1]
    if exponent == 2:
        return call.add("binary", [x, x], kind="multiply")
    if exponent == 0.5:
        return call.add("unary", [x], kind="sqrt")
    return call.add("binary", [x, operand(call, exponent)], kind="power")


@lowers(aten.prelu.default, aten._prelu_kernel.default)
def _prelu(call: Call) -> Value:
    """max(x, 0) + weight min(x, 0), the weight one number or one a channel."""
    x, weight = call.value(0), call.constant(1)
    assert weight.constant is not None
    shape = weight.shape
    if len(shape) == 1 and len(x.shape) > 1:
        shape = (*shape, *[1] * (len(x.shape) - 2))
    slope = Value(weight.name, shape, weight.constant.reshape(shape))
    zero = operand(call, 0.0)
    above = call.step("above", x.shape, "binary", [x, zero], kind="maximum")
    below = call.step("below", x.shape, "binary", [x, zero], kind="minimum")
    scaled = call.step("scaled", x.shape, "binary", [below, slope], kind="multiply")
    return _sum(call, above, scaled)
