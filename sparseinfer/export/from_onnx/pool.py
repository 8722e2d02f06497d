"""Pooling of images, and means over all of their pixels."""

from __future__ import annotations

from typing import Any

import torch

from sparseinfer.export.from_onnx.table import Call, Refusal, converts
from sparseinfer.export.from_onnx.window import pads_of
from sparseinfer.export.graph import MOST_COLUMNS, Value

__all__: list[str] = []


def _pooled(call: Call, x: Value) -> dict[str, Any]:
    """Attributes of a pooling; what ceil_mode adds is padding at the end."""
    if len(x.shape) != 4 or max(x.shape[2:]) > MOST_COLUMNS:
        raise Refusal(f"a batch of images of at most {MOST_COLUMNS} rows and columns is taken")
    kernel = list(call.attribute("kernel_shape", []))
    stride = list(call.attribute("strides", [1, 1]))
    if [*call.attribute("dilations", [1, 1])] != [1, 1]:
        raise Refusal("it is dilated")
    if len(kernel) != 2 or len(stride) != 2 or min(*kernel, *stride) < 1:
        raise Refusal(f"its windows are {kernel} in steps of {stride}")
    padding = pads_of(call, x.shape[2:], kernel, stride, [1, 1])
    for axis in range(2):
        covered = (call.shape[2 + axis] - 1) * stride[axis] + kernel[axis]
        more = covered - x.shape[2 + axis] - padding[2 * axis] - padding[2 * axis + 1]
        if call.attribute("ceil_mode", 0) and more > 0:
            padding[2 * axis + 1] += more
    if max(padding[:2]) >= kernel[0] or max(padding[2:]) >= kernel[1]:
        raise Refusal(f"its padding {padding} is as large as its windows {kernel}")
    return {"kernel": kernel, "stride": stride, "padding": padding}


@converts("MaxPool")
def _max_pool(call: Call) -> Value:
    call.only_first()
    x = call.passed(0)
    return call.add("max_pool", [x], **_pooled(call, x))


@converts("AveragePool")
def _average_pool(call: Call) -> Value:
    x = call.computed(0)
    counts = bool(call.attribute("count_include_pad", 0))
    pooled = _pooled(call, x)
    if counts and call.attribute("ceil_mode", 0):
        own = pads_of(call, x.shape[2:], pooled["kernel"], pooled["stride"], [1, 1])
        if own != pooled["padding"]:
            raise Refusal("its last windows, by ceil_mode, reach beyond the padding that it counts")
    return call.add("average_pool", [x], **pooled, count_padding=counts)


@converts("GlobalAveragePool")
def _global_average_pool(call: Call) -> Value:
    return _mean_of_pixels(call)


@converts("GlobalMaxPool")
def _global_max_pool(call: Call) -> Value:
    x = call.passed(0)
    if len(x.shape) != 4 or max(x.shape[2:]) > MOST_COLUMNS:
        raise Refusal(f"a batch of images of at most {MOST_COLUMNS} rows and columns is taken")
    kernel = list(x.shape[2:])
    return call.add("max_pool", [x], kernel=kernel, stride=kernel, padding=[0] * 4)


def _mean_of_pixels(call: Call) -> Value:
    x = call.computed(0)
    if len(x.shape) == 4:
        return call.add("global_average_pool", [x])
    mean: Value = call.aten(torch.ops.aten.mean.dim, x, list(range(2, len(x.shape))), True)
    return mean
