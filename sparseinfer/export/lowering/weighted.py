"""Operators with weights: linear layers, convolutions, batch norms."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import Call, Refusal, lowers, pair
from sparseinfer.export.lowering.transposed import transposed_conv

aten = torch.ops.aten


@lowers(aten.linear.default)
def _linear(call: Call) -> Value:
    bias = call.argument(2, "bias", None)
    if bias is not None and bias.constant is None:
        raise Refusal("its bias is computed")
    return call.add("linear", [call.value(0), call.constant(1), bias])


@lowers(aten.addmm.default)
def _addmm(call: Call) -> Value:
    if call.argument(3, "beta", 1) != 1 or call.argument(4, "alpha", 1) != 1:
        raise Refusal("its beta or alpha is not 1")
    bias, weight = call.constant(0), call.constant(2)
    if bias.shape != call.shape[-1:]:
        raise Refusal(f"its bias is {list(bias.shape)}, one number a column is taken")
    return call.add("linear", [call.value(1), _transposed(weight), bias])


@lowers(aten.mm.default, aten.matmul.default, aten.bmm.default)
def _matmul(call: Call) -> Value:
    """A layer, or a product of two computed tensors, which is a part of attention."""
    a, b = call.value(0), call.value(1)
    if b.constant is not None and len(b.shape) == 2:
        return call.add("linear", [a, _transposed(b), None])
    if len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2] or len(a.shape) < 3:
        raise Refusal(f"it multiplies {list(a.shape)} and {list(b.shape)}: a weight of two "
                      "dimensions, or batches of as many matrices are taken")  # fmt: skip
    return call.add("matmul", [a, b])


def _transposed(weight: Value) -> Value:
    assert weight.constant is not None
    return Value(f"{weight.name}_t", weight.shape[::-1], weight.constant.t().contiguous())


@lowers(aten.convolution.default)
def _convolution(call: Call) -> Value:
    x, weight = call.value(0), call.constant(1)
    bias, stride, padding, dilation, transposed, _, groups = call.args[2:9]
    if len(weight.shape) not in (3, 4) or len(x.shape) != len(weight.shape):
        raise Refusal(f"it has {len(weight.shape) - 2} dimensions, and a batch of 1-d and 2-d ones")
    if bias is not None and bias.constant is None:
        raise Refusal("its bias is computed")
    flat = len(weight.shape) == 3
    # One number stands for every dimension.
    down, right = (0, padding[0]) if flat else pair(padding)
    given = {
        "stride": [1, stride[0]] if flat else pair(stride), "padding": [down, down, right, right],
        "dilation": [1, dilation[0]] if flat else pair(dilation), "groups": groups,
    }  # fmt: skip
    if transposed:
        return transposed_conv(call, x, weight, bias, given)
    return call.add("conv", [x, weight, bias], **given)


@lowers(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(call: Call) -> Value:
    x, eps = call.value(0), call.args[6]
    scale, shift = call.args[1], call.args[2]
    for value in (scale, shift):
        if value is not None and value.constant is None:
            raise Refusal("its weight or bias is computed")
    return call.add(
        "batch_norm", [x, scale, shift, call.constant(3), call.constant(4)], eps=float(eps)
    )
