"""Operators with weights: linear layers, convolutions, batch norms; products of two tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseinfer.export.from_onnx.table import Call, Refusal, converts
from sparseinfer.export.from_onnx.window import pads_of
from sparseinfer.export.graph import Value
from sparseinfer.export.lowering import Call as AtenCall
from sparseinfer.export.lowering.transposed import transposed_conv

__all__ = ["bias_of", "conv_attributes", "rows_of", "turned"]


def turned(weight: Value) -> Value:
    """The transpose of a matrix, with the scales that it was quantised by.

    Example:
        >>> turned(Value("w", (2, 3), torch.zeros(2, 3))).shape
        (3, 2)
    """
    assert weight.constant is not None
    scales = weight.weight_scales
    return Value(
        f"{weight.name} transposed", weight.shape[::-1], weight.constant.t().contiguous(),
        weight.dtype, None,
        scales.t() if scales is not None and scales.dim() == 2 else scales,
    )  # fmt: skip


def rows_of(weight: Value) -> Value:
    """The weight with a scale for each output row `[M]`, or none where its scales are others."""
    scales, rows = weight.weight_scales, weight.shape[0]
    if scales is None:
        return weight
    by_row = scales.numel() == 1 or (
        scales.dim() == len(weight.shape) and scales.numel() == scales.shape[0] == rows
    )
    found = scales.reshape(-1).expand(rows).contiguous() if by_row else None
    return Value(weight.name, weight.shape, weight.constant, weight.dtype, None, found)


def bias_of(call: Call, index: int, rows: int) -> Value | None:
    """A bias of a number a row, if there is one."""
    if call.optional(index) is None:
        return None
    bias = call.weight(index)
    if bias.shape not in ((rows,), (1, rows)):
        if torch.Size(bias.shape).numel() != 1:
            raise Refusal(f"its bias is {list(bias.shape)}, one number a column is taken")
    assert bias.constant is not None
    return Value(bias.name, (rows,), bias.constant.reshape(-1).expand(rows).contiguous())


def conv_attributes(call: Call, x: tuple[int, ...], weight: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of a convolution in the graph."""
    dims = len(weight) - 2
    if dims not in (1, 2) or len(x) != len(weight):
        raise Refusal(f"it has {dims} dimensions, and 1-d and 2-d ones are taken")
    groups = int(call.attribute("group", 1))
    kernel = list(call.attribute("kernel_shape", weight[2:]))
    if kernel != list(weight[2:]) or groups < 1 or weight[1] * groups != x[1]:
        raise Refusal(f"its weight {list(weight)} does not fit {list(x)} in {groups} groups")
    stride = list(call.attribute("strides", [1] * dims))
    dilation = list(call.attribute("dilations", [1] * dims))
    if len(stride) != dims or len(dilation) != dims:
        raise Refusal("its strides or dilations are not those of its dimensions")
    padding = pads_of(call, x[2:], kernel, stride, dilation)
    if dims == 1:
        stride, dilation, padding = [1, *stride], [1, *dilation], [0, 0, *padding]
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@converts("Conv")
def _conv(call: Call) -> Value:
    x, weight = call.computed(0), rows_of(call.weight(1))
    bias = bias_of(call, 2, weight.shape[0])
    return call.add("conv", [x, weight, bias], **conv_attributes(call, x.shape, weight.shape))


@converts("ConvTranspose")
def _conv_transpose(call: Call) -> Value:
    x, weight = call.computed(0), call.weight(1)
    dims, groups = len(weight.shape) - 2, int(call.attribute("group", 1))
    out = weight.shape[1] * groups
    if dims not in (1, 2) or len(x.shape) != len(weight.shape) or weight.shape[0] != x.shape[1]:
        raise Refusal(f"its weight {list(weight.shape)} does not fit {list(x.shape)}")
    stride = list(call.attribute("strides", [1] * dims))
    dilation = list(call.attribute("dilations", [1] * dims))
    if groups < 1 or weight.shape[0] % groups or len(stride) != dims or len(dilation) != dims:
        raise Refusal("its groups, strides or dilations are not those of its weight")
    bias = bias_of(call, 2, out)
    if "output_shape" in call.node.attributes or call.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise Refusal("its padding follows from its output")
    padding = pads_of(call, x.shape[2:], weight.shape[2:], stride, dilation)
    if dims == 1:
        stride, dilation, padding = [1, *stride], [1, *dilation], [0, 0, *padding]
    given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    own = AtenCall(call.graph, call.name, call.path, [], {}, call.shape)
    return transposed_conv(own, x, weight, bias, given)


@converts("MatMul")
def _matmul(call: Call) -> Any:
    b = call.value(1)
    if b.constant is not None and len(b.shape) == 2 and call.value(0).constant is None:
        return call.add("linear", [call.value(0), rows_of(turned(b)), None])
    return call.aten(torch.ops.aten.matmul.default, call.value(0), b)


@converts("Gemm")
def _gemm(call: Call) -> Value:
    x, weight = call.computed(0), call.weight(1)
    if call.attribute("transA", 0):
        raise Refusal("its first input is transposed")
    if not call.attribute("transB", 0):
        weight = turned(weight)
    weight = _times(rows_of(weight), float(call.attribute("alpha", 1.0)))
    rows = weight.shape[0]
    addend = call.optional(2)
    if isinstance(addend, Value) and addend.constant is None and addend.shape == call.shape:
        if call.attribute("beta", 1.0) != 1:
            raise Refusal("its beta is not 1")
        product = call.step(f"{call.name} product", call.shape, "linear", [x, weight, None])
        return call.add("add", [product, call.computed(2)])
    bias = bias_of(call, 2, rows)
    if bias is not None:
        bias = _times(bias, float(call.attribute("beta", 1.0)))
    return call.add("linear", [x, weight, bias])


def _times(value: Value, factor: float) -> Value:
    if factor == 1 or value.constant is None:
        return value
    scales: Tensor | None = None
    if value.weight_scales is not None and factor > 0:
        scales = value.weight_scales * factor
    return Value(value.name, value.shape, value.constant * factor, value.dtype, None, scales)


@converts("BatchNormalization")
def _batch_norm(call: Call) -> Value:
    call.only_first()
    if call.attribute("training_mode", 0):
        raise Refusal("it is in training mode")
    inputs = [call.computed(0), *(call.weight(index) for index in range(1, 5))]
    if any(own.shape != (inputs[0].shape[1],) for own in inputs[1:]):
        raise Refusal("its statistics are not one number a channel")
    return call.add("batch_norm", inputs, eps=float(call.attribute("epsilon", 1e-5)))
