"""Operators that move elements and change none: shapes, axes, padding, concatenation, softmax."""

from __future__ import annotations

import math

import torch

from sparseinfer.export.from_onnx.table import Call, Refusal, converts
from sparseinfer.export.graph import Value

__all__ = ["cast"]


@converts("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(call: Call) -> Value:
    x = call.passed(0)
    if math.prod(x.shape) != math.prod(call.shape):
        raise Refusal(f"it makes {list(call.shape)} of {list(x.shape)}")
    if x.constant is None:
        return call.add("reshape", [x])
    scales = x.weight_scales
    kept = scales.reshape(()) if scales is not None and scales.numel() == 1 else None
    return Value(call.name, call.shape, x.constant.reshape(call.shape), x.dtype, None, kept)


@converts("Transpose")
def _transpose(call: Call) -> Value:
    x = call.passed(0)
    order = list(call.attribute("perm", range(len(x.shape))[::-1]))
    if sorted(order) != list(range(len(x.shape))):
        raise Refusal(f"its order of axes is {order}")
    if x.constant is None:
        long = [axis for axis in order if x.shape[axis] > 1]
        if long != sorted(long):
            raise Refusal(f"it moves the axes of a tensor that is computed to {order}")
        return call.add("reshape", [x])
    scales = x.weight_scales
    if scales is not None and scales.numel() > 1:
        scales = scales.permute(order)
    moved = x.constant.permute(order).contiguous()
    return Value(call.name, call.shape, moved, x.dtype, None, scales)


@converts("Identity")
def _same(call: Call) -> Value:
    return call.passed(0)


def cast(call: Call) -> Value:
    """A change of type that changes nothing; those of integers are in `quantized`."""
    import onnx_ir

    x = call.passed(0)
    if x.dtype != torch.float32 or call.attribute("to", 0) != onnx_ir.DataType.FLOAT:
        raise Refusal("it changes the type of a tensor, and float32 is taken")
    return x


@converts("Dropout")
def _dropout(call: Call) -> Value:
    call.only_first()
    if call.number(2, False):
        raise Refusal("it is in training mode")
    return call.passed(0)


@converts("Concat")
def _concat(call: Call) -> Value:
    values = [call.computed(index) for index in range(len(call.inputs))]
    return call.add("concat", values, axis=call.attribute("axis", 0) % len(call.shape))


@converts("Softmax")
def _softmax(call: Call) -> Value:
    x = call.computed(0)
    flattens = call.opset < 13
    axis = call.attribute("axis", 1 if flattens else -1) % len(x.shape)
    if flattens and math.prod(x.shape[axis + 1 :]) > 1:
        raise Refusal("it is taken over several axes at once")
    return call.add("softmax", [x], axis=axis)


@converts("Pad")
def _pad(call: Call) -> Value:
    x = call.computed(0)
    if call.attribute("mode", "constant") != "constant":
        raise Refusal(f"it pads by the rule {call.attribute('mode', '')}")
    rank = len(x.shape)
    axes = [int(axis) % rank for axis in call.numbers(3) or range(rank)]
    given = [int(end) for end in call.numbers(1) or []]
    if len(given) != 2 * len(axes):
        raise Refusal(f"its padding is {given}")
    ends = {axis: (given[k], given[len(axes) + k]) for k, axis in enumerate(axes)}
    moved = {axis for axis, pair in ends.items() if pair != (0, 0)}
    if not moved:
        return x
    if rank not in (3, 4) or not moved <= set(range(2, rank)):
        raise Refusal("it pads other axes than those of an image")
    down = ends.get(2, (0, 0)) if rank == 4 else (0, 0)
    right = ends.get(rank - 1, (0, 0))
    return call.add("pad", [x], padding=[*down, *right], fill=float(call.number(2, 0.0)))
