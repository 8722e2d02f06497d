"""Torch's own dense int8 layers: what a sparse int8 layer has to beat beside dense float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.convert.scan import brief
from sparseinfer.quantize.activations import ActivationScale, scale_of_range
from sparseinfer.quantize.weights import weight_scales

__all__ = ["dense_int8"]


def dense_int8(
    dense: nn.Module, scale: ActivationScale | None, sample: Tensor
) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """A call of torch's int8 layer with the weight of `dense`, float32 in and out, or why not.

    `scale` is that of the input; None: found at every call, of linear layers alone. The output's
    scale is found on `sample`. Quantising and dequantising are part of the call.

    Example:
        >>> call, _ = dense_int8(nn.Linear(64, 8), None, torch.randn(4, 64))
        >>> call is None or call(torch.randn(4, 64)).shape == (4, 8)
        True
    """
    try:
        with warnings.catch_warnings():  # torch would have its quantised tensors given up
            warnings.simplefilter("ignore")
            call = _of(dense, scale, sample)
            call(sample[:1] if sample.dim() > 1 else sample)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        return None, brief(error)  # an engine that this build of torch lacks
    return call, ""


def _of(dense: Any, scale: ActivationScale | None, sample: Tensor) -> Callable[[Tensor], Tensor]:
    scales = weight_scales(dense.weight)
    weight = torch.quantize_per_channel(
        dense.weight.detach().float(), scales.double(), torch.zeros_like(scales).long(), 0,
        torch.qint8,
    )  # fmt: skip
    bias = None if dense.bias is None else dense.bias.detach().float()
    quantized: Any = torch.ops.quantized
    if isinstance(dense, nn.Linear):
        packed = quantized.linear_prepack(weight, bias)
        if scale is None:
            return lambda x: quantized.linear_dynamic(x, packed)
        run = quantized.linear
    elif scale is None or dense.padding_mode != "zeros" or isinstance(dense.padding, str):
        raise ValueError("expected a convolution with calibrated activations and plain zeros")
    else:
        of_axes = [list(own) for own in (dense.stride, dense.padding, dense.dilation)]
        one = len(dense.kernel_size) == 1
        prepack = quantized.conv1d_prepack if one else quantized.conv2d_prepack
        packed = prepack(weight, bias, *of_axes, dense.groups)
        run = quantized.conv1d if one else quantized.conv2d
    out = scale_of_range(*(float(bound) for bound in torch.aminmax(dense(sample))))

    def call(x: Tensor) -> Tensor:
        levels = torch.quantize_per_tensor(x, scale.scale, scale.zero_point, torch.quint8)
        result: Tensor = run(levels, packed, out.scale, out.zero_point).dequantize()
        return result

    return call
