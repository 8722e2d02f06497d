"""Quantised operators, in the terms of the graph: bytes, floats and changes between the two.

Bytes become floats, an operator computes on those, and its output becomes bytes: the pass
`keep_bytes` then takes out the changes where the engine has a kernel of bytes, and the rest
computes the same in float32. int8 activations are uint8 with a zero point of 128 more.

Where scales are found at run time (DynamicQuantizeLinear), activations stay float32: their rounding
is left out, and the integer weights with their scales are the file's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparseinfer.export.from_onnx.elementwise import multiply
from sparseinfer.export.from_onnx.masks import cast
from sparseinfer.export.from_onnx.table import Call, Refusal, converts
from sparseinfer.export.from_onnx.weighted import conv_attributes, turned
from sparseinfer.export.graph import Value
from sparseinfer.quantize.activations import LEAST_SCALE, MOST_SCALE, ActivationScale

__all__ = ["DynamicScale", "Sums"]

SIGNED = 128
"""What is added to an int8 so that it is a uint8."""


@dataclass(frozen=True)
class Dynamic:
    """One of the outputs of DynamicQuantizeLinear of `source`: its bytes, or its zero point."""

    source: Value
    part: str


@dataclass(frozen=True)
class DynamicScale:
    """The scale that DynamicQuantizeLinear finds for `source`, times constants."""

    source: Value
    factor: Tensor


@dataclass(frozen=True)
class Sums:
    """The int32 sums of a layer of integers: those of `source` over `unit`, None being a scale that
    is found at run time, times integer weights."""

    source: Value
    unit: float | None
    weight: Value
    op: str
    attributes: dict[str, Any]


def _scale(call: Call, index: int, zero: int, signed: bool) -> ActivationScale:
    """A scale and a zero point of activations, of all of the tensor."""
    point = int(call.number(zero, 0)) + (SIGNED if signed else 0)
    try:
        return ActivationScale(float(call.number(index, 1.0)), point)
    except ValueError as error:
        raise Refusal(str(error)) from None


def _is_signed(call: Call, zero: int, output: bool = False) -> bool:
    """Whether bytes are int8: by the zero point, or by their own type."""
    import onnx_ir

    point = call.optional(zero)
    if isinstance(point, Value):
        kinds = {torch.int8: True, torch.uint8: False}
        if point.dtype not in kinds:
            raise Refusal(f"its bytes are {point.dtype}, and int8 and uint8 are taken")
        return kinds[point.dtype]
    if output:
        kind = call.attribute("output_dtype", 0) or onnx_ir.DataType.UINT8
    else:
        kind = call.node.inputs[0].dtype
    if kind not in (onnx_ir.DataType.UINT8, onnx_ir.DataType.INT8):
        raise Refusal(f"its bytes are {kind}, and int8 and uint8 are taken")
    return bool(kind == onnx_ir.DataType.INT8)


def _spread(call: Call, value: Value, like: Value, axis: int) -> Tensor:
    """One number, or one for each place along an axis, as it is broadcast over a tensor."""
    assert value.constant is not None
    if value.constant.numel() == 1:
        return value.constant.reshape(())
    if not -len(like.shape) <= axis < len(like.shape):
        raise Refusal(f"its axis is {axis}, of {list(like.shape)}")
    shape = [1] * len(like.shape)
    shape[axis] = like.shape[axis]
    if value.shape != (shape[axis],):
        raise Refusal(
            f"its scales are {list(value.shape)}: one, or one a place of an axis is taken"
        )
    return value.constant.reshape(shape)


@converts("QuantizeLinear")
def _quantize(call: Call) -> Value:
    x = call.value(0)
    signed = _is_signed(call, 2, output=True)
    if x.constant is None:
        return call.add("quantize", [x], scale=_scale(call, 1, 2, signed))
    axis = call.attribute("axis", 1)
    scale = _spread(call, call.weight(1), x, axis)
    zero = 0 if call.optional(2) is None else _spread(call, call.constant(2), x, axis).int()
    kind = torch.int8 if signed else torch.uint8
    least, most = torch.iinfo(kind).min, torch.iinfo(kind).max
    levels = (torch.round(x.constant / scale) + zero).nan_to_num().clamp(least, most)
    return Value(call.name, x.shape, levels.to(kind), kind)


@converts("DequantizeLinear")
def _dequantize(call: Call) -> Value:
    x = call.passed(0)
    if call.attribute("block_size", 0):
        raise Refusal("its scales are of blocks, and one or one a row is taken")
    if x.constant is None:
        if x.scale is None or _scale(call, 1, 2, _is_signed(call, 2)) != x.scale:
            raise Refusal("its scale and zero point are not those that its bytes were made by")
        return call.add("dequantize", [x])
    axis = call.attribute("axis", 1)
    zero = None if call.optional(2) is None else _spread(call, call.constant(2), x, axis)
    return _floats(call.name, x, _spread(call, call.weight(1), x, axis), zero)


def _floats(name: str, levels: Value, scale: Tensor, zero: Tensor | None) -> Value:
    """The numbers that constant integers stand for, with their scales where they are int8."""
    if levels.dtype not in (torch.int8, torch.uint8, torch.int32):
        raise Refusal(f"its integers are {levels.dtype}; int8, uint8 and int32 are taken")
    assert levels.constant is not None
    whole = levels.constant.int() - (0 if zero is None else zero.int())
    fits = levels.dtype != torch.int32 and -128 <= int(whole.min()) and int(whole.max()) <= 127
    fits = fits and bool(((scale >= LEAST_SCALE) & (scale <= MOST_SCALE)).all())
    return Value(
        name, levels.shape, whole.float() * scale, torch.float32, None, scale if fits else None
    )


@converts("DynamicQuantizeLinear")
def _dynamic(call: Call) -> tuple[Any, ...]:
    x = call.computed(0)
    return Dynamic(x, "bytes"), DynamicScale(x, torch.ones(())), Dynamic(x, "zero")


def _sums(call: Call, op: str, weight: Value, attributes: dict[str, Any]) -> Sums:
    x, zero = call.inputs[0], call.optional(2)
    if isinstance(x, Dynamic):
        if x.part != "bytes" or zero != Dynamic(x.source, "zero"):
            raise Refusal("its zero point is not that of its bytes")
        return Sums(x.source, None, weight, op, attributes)
    if not isinstance(x, Value) or x.scale is None:
        raise Refusal("its bytes have no known scale")
    own = int(call.number(2, 0)) + (SIGNED if _is_signed(call, 2) else 0)
    if own != x.scale.zero_point:
        raise Refusal("its zero point is not that of its bytes")
    floats = call.step(f"{call.name} {x.name} floats", x.shape, "dequantize", [x])
    return Sums(floats, x.scale.scale, weight, op, attributes)


def _integers(call: Call, axis: int) -> Value:
    """Integer weights as floats of the scale 1."""
    weight = call.constant(1)
    zero = None
    if call.optional(3) is not None:
        zero = _spread(call, call.constant(3), weight, axis)
    return _floats(weight.name, weight, torch.ones(()), zero)


@converts("MatMulInteger")
def _matmul_integer(call: Call) -> Sums:
    weight = _integers(call, 1)
    if len(weight.shape) != 2:
        raise Refusal(f"its weight is {list(weight.shape)}, two dimensions are taken")
    return _sums(call, "linear", turned(weight), {})


@converts("ConvInteger")
def _conv_integer(call: Call) -> Sums:
    weight = _integers(call, 0)
    x = call.inputs[0].source if isinstance(call.inputs[0], Dynamic) else call.passed(0)
    return _sums(call, "conv", weight, conv_attributes(call, x.shape, weight.shape))


@converts("Cast")
def _cast(call: Call) -> Any:
    import onnx_ir

    if isinstance(call.inputs[0], Sums) and call.attribute("to", 0) == onnx_ir.DataType.FLOAT:
        return call.inputs[0]
    return cast(call)


@converts("Mul")
def _mul(call: Call) -> Any:
    a, b = call.inputs
    for x, factor in ((a, b), (b, a)):
        if isinstance(x, DynamicScale) and isinstance(factor, Value):
            if factor.constant is not None and factor.dtype == torch.float32:
                return DynamicScale(x.source, x.factor * factor.constant)
        if isinstance(x, Sums):
            return _scaled(call, x, factor)
    return multiply(call)


def _scaled(call: Call, sums: Sums, factor: Any) -> Value:
    """The layer that integer sums times scales are."""
    if sums.unit is None:
        if not isinstance(factor, DynamicScale) or factor.source is not sums.source:
            raise Refusal("its sums are scaled by something else than their scales")
        scale = factor.factor
    else:
        if not isinstance(factor, Value) or factor.constant is None:
            raise Refusal("its sums are scaled by something that is computed")
        scale = factor.constant.float() / sums.unit
    weight = sums.weight
    assert weight.constant is not None
    rows = weight.shape[0]
    if scale.numel() not in (1, rows):
        raise Refusal(f"its scales are {list(scale.shape)}, one or one a row is taken")
    by_row = scale.reshape(-1).expand(rows).contiguous()
    shaped = by_row.reshape(-1, *[1] * (len(weight.shape) - 1))
    good = weight.weight_scales is not None and bool(
        ((by_row >= LEAST_SCALE) & (by_row <= MOST_SCALE)).all()
    )
    floats = Value(
        weight.name, weight.shape, weight.constant * shaped, torch.float32, None,
        by_row if good else None,
    )  # fmt: skip
    return call.add(sums.op, [sums.source, floats, None], **sums.attributes)
