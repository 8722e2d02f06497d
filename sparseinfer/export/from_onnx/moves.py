"""Operators that move elements and change none: shapes, axes, padding, joining, repeating."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparseinfer.export.from_onnx.table import Call, Refusal, converts
from sparseinfer.export.graph import Value
from sparseinfer.export.masks import Choice

__all__: list[str] = []

aten = torch.ops.aten


@converts("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(call: Call) -> Any:
    x = call.part(0)
    if isinstance(x, Choice):
        return call.aten(aten.view.default, x, list(call.shape))
    if math.prod(x.shape) != math.prod(call.shape):
        raise Refusal(f"it makes {list(call.shape)} of {list(x.shape)}")
    if x.constant is None and x.scale is not None:
        return call.add("reshape", [x])
    if x.constant is None:
        return call.aten(aten.view.default, x, list(call.shape))
    scales = x.weight_scales
    kept = scales.reshape(()) if scales is not None and scales.numel() == 1 else None
    return Value(call.name, call.shape, x.constant.reshape(call.shape), x.dtype, None, kept)


@converts("Transpose")
def _transpose(call: Call) -> Any:
    x = call.part(0)
    rank = len(x.shape)
    order = list(call.attribute("perm", range(rank)[::-1]))
    if sorted(order) != list(range(rank)):
        raise Refusal(f"its order of axes is {order}")
    if isinstance(x, Choice):
        return call.aten(aten.permute.default, x, order)
    if x.constant is None:
        long = [axis for axis in order if x.shape[axis] > 1]
        if long == sorted(long):
            return call.add("reshape", [x])
        return call.aten(aten.permute.default, call.value(0), order)
    scales = x.weight_scales
    if scales is not None and scales.numel() > 1:
        scales = scales.permute(order)
    moved = x.constant.permute(order).contiguous()
    return Value(call.name, call.shape, moved, x.dtype, None, scales)


@converts("Identity")
def _same(call: Call) -> Value | Choice:
    return call.part(0)


@converts("Dropout")
def _dropout(call: Call) -> Value:
    call.only_first()
    if call.number(2, False):
        raise Refusal("it is in training mode")
    return call.passed(0)


@converts("Concat")
def _concat(call: Call) -> Any:
    values = [call.part(index) for index in range(len(call.inputs))]
    if any(isinstance(own, Value) and own.dtype == torch.uint8 for own in values):
        raise Refusal("it joins bytes")
    return call.aten(aten.cat.default, values, call.attribute("axis", 0))


@converts("Expand")
def _expand(call: Call) -> Any:
    return call.aten(aten.expand.default, call.part(0), list(call.shape))


@converts("Tile")
def _tile(call: Call) -> Any:
    return call.aten(aten.repeat.default, call.part(0), call.numbers(1) or [])


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
