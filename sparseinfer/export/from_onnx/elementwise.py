"""Functions of each element, and arithmetic of two tensors: by torch's operators."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparseinfer.export.from_onnx.table import OPERATORS, Call, Converter, Refusal, converts
from sparseinfer.export.graph import Value
from sparseinfer.export.masks import Choice

__all__ = ["multiply"]

aten = torch.ops.aten

UNARY = {
    "Relu": aten.relu.default, "Sigmoid": aten.sigmoid.default, "Tanh": aten.tanh.default,
    "HardSwish": aten.hardswish.default, "Abs": aten.abs.default, "Exp": aten.exp.default,
    "Log": aten.log.default, "Sqrt": aten.sqrt.default, "Erf": aten.erf.default,
    "Sin": aten.sin.default, "Cos": aten.cos.default, "Floor": aten.floor.default,
    "Ceil": aten.ceil.default, "Round": aten.round.default, "Neg": aten.neg.default,
    "Reciprocal": aten.reciprocal.default, "Softplus": aten.softplus.default,
}  # fmt: skip

BINARY = {
    "Add": aten.add.Tensor, "Sub": aten.sub.Tensor, "Div": aten.div.Tensor,
    "Pow": aten.pow.Tensor_Tensor,
}  # fmt: skip
"""Of two tensors; a product is in `quantized`, where it may be one of scales."""

SEVERAL = {"Max": aten.maximum.default, "Min": aten.minimum.default, "Sum": aten.add.Tensor}
"""Of any number of tensors."""

HIGHEST = torch.finfo(torch.float32).max


def _unary(target: Any) -> Converter:
    return lambda call: call.aten(target, call.floats(0))


def _binary(target: Any) -> Converter:
    return lambda call: call.aten(target, _operand(call, 0), _operand(call, 1))


def _several(target: Any) -> Converter:
    def convert(call: Call) -> Any:
        found: Any = _operand(call, 0)
        for index in range(1, len(call.inputs)):
            found = call.aten(target, found, _operand(call, index))
        return found

    return convert


for _name, _target in UNARY.items():
    OPERATORS[_name] = _unary(_target)
for _name, _target in BINARY.items():
    OPERATORS[_name] = _binary(_target)
for _name, _target in SEVERAL.items():
    OPERATORS[_name] = _several(_target)


def _operand(call: Call, index: int) -> Value | Choice:
    """A tensor of floats, or of the integers that a mask is made of."""
    found = call.part(index)
    if isinstance(found, Value) and found.dtype == torch.uint8:
        raise Refusal(f"expected float32 as input {index}, got {found.dtype}")
    return found


def multiply(call: Call) -> Any:
    """A product of floats; those of scales are in `quantized`."""
    return call.aten(aten.mul.Tensor, _operand(call, 0), _operand(call, 1))


@converts("Gelu")
def _gelu(call: Call) -> Any:
    approximate = call.attribute("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise Refusal(f"its approximation is {approximate!r}")
    return call.aten(aten.gelu.default, call.value(0), approximate=approximate)


@converts("Clip")
def _clip(call: Call) -> Any:
    low = float(call.number(1, -math.inf))
    high = float(call.number(2, math.inf))
    if low <= -HIGHEST and high >= HIGHEST:
        return call.floats(0)
    high = math.inf if high >= HIGHEST else high
    low = -math.inf if low <= -HIGHEST else low
    return call.aten(aten.clamp.default, call.floats(0), low, high)


@converts("HardSigmoid")
def _hard_sigmoid(call: Call) -> Any:
    x = call.value(0)
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call.aten(aten.hardsigmoid.default, x)
    scaled = call.aten(aten.mul.Scalar, x, alpha)
    return call.aten(aten.clamp.default, call.aten(aten.add.Scalar, scaled, beta), 0.0, 1.0)


@converts("LeakyRelu")
def _leaky_relu(call: Call) -> Any:
    return call.aten(aten.leaky_relu.default, call.value(0), call.attribute("alpha", 0.01))


@converts("Elu")
def _elu(call: Call) -> Any:
    return call.aten(aten.elu.default, call.value(0), call.attribute("alpha", 1.0))


@converts("Selu")
def _selu(call: Call) -> Any:
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    gamma = call.attribute("gamma", 1.05070102214813232421875)
    return call.aten(aten.elu.default, call.value(0), alpha, gamma)


@converts("Mish")
def _mish(call: Call) -> Any:
    x = call.value(0)
    softplus = call.aten(aten.softplus.default, x)
    return call.aten(aten.mul.Tensor, x, call.aten(aten.tanh.default, softplus))


@converts("PRelu")
def _prelu(call: Call) -> Any:
    """max(x, 0) + slope min(x, 0): the slope is broadcast as any operand is."""
    x, slope = call.value(0), call.weight(1)
    zero = Value(f"{call.name} zero", (), torch.zeros(()))
    above = call.aten(aten.maximum.default, x, zero)
    below = call.aten(aten.minimum.default, x, zero)
    return call.aten(aten.add.Tensor, above, call.aten(aten.mul.Tensor, below, slope))


@converts("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Any:
    x = call.value(0)
    flattens = call.opset < 13
    axis = call.axis(call.attribute("axis", 1 if flattens else -1), len(x.shape))
    if flattens and math.prod(x.shape[axis + 1 :]) > 1:
        raise Refusal("it is taken over several axes at once")
    target = aten._softmax if call.node.op_type == "Softmax" else aten._log_softmax
    return call.aten(target.default, x, axis, False)
