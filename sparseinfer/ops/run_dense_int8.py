"""Calls of torch's dense int8 kernel with a packed int8 weight: what runs where ours is slower."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from sparseinfer.formats.handles import Handle, open_packed
from sparseinfer.kernels.activations import activation_module
from sparseinfer.kernels.contract import NARROW
from sparseinfer.ops.run_int8 import (
    check_int8_linear,
    int8_handle,
    linear_int8_cpu,
    linear_per_token,
    widened,
)
from sparseinfer.quantize.activations import LEAST_SCALE, LEVELS, MOST_SCALE, scale_of_range
from sparseinfer.quantize.weights import quantize_weight

__all__ = ["has_dense_int8", "linear_dense_int8_cpu"]

_PROBED = 64
"""Columns of the probe: more than one instruction adds up."""

_Call = Callable[[Tensor, float, int], Tensor]


def linear_dense_int8_cpu(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
    out_features: int,
    activation: str = "none",
    threads: int = 0,
) -> Tensor:
    """Compute act(x W^T + bias) with an int8 W by torch's dense kernel, and its threads.

    Arguments are those of `linear_int8_cpu`; without a scale x is rounded by the range of all of
    it. Where this build of torch has no exact kernel, the weight was packed with scales of others,
    or x has no range (it holds NaN or Inf, or only zeros), ours computes it.

    Raises:
        RuntimeError, ValueError: see `linear_int8_cpu`.

    Example:
        >>> from sparseinfer import pack
        >>> packed, scale = pack(torch.eye(4), weights="int8"), torch.tensor(1.0)
        >>> linear_dense_int8_cpu(torch.arange(4.0), packed, None, scale, torch.tensor(0), 4)
        tensor([0., 1., 2., 3.])
    """
    if x.dtype in NARROW:
        wide, wide_bias = widened(x, bias)
        return linear_dense_int8_cpu(
            wide, packed, wide_bias, input_scale, input_zero_point, out_features, activation,
            threads,
        ).to(x.dtype)  # fmt: skip
    handle = int8_handle(packed, x)
    tokens, bias = check_int8_linear(handle, x, bias, out_features)
    call = _call_of(packed, handle)
    scale = None
    if tokens and call is not None:
        if input_scale is not None and input_zero_point is not None:
            scale = float(input_scale), int(input_zero_point)
        else:
            scale = _range_of(x)
    if call is None or scale is None:
        if input_scale is None or input_zero_point is None:
            return linear_per_token(x, packed, bias, out_features, activation, threads)
        return linear_int8_cpu(
            x, packed, bias, input_scale, input_zero_point, out_features, activation, threads
        )
    flat = x.dim() == 2  # to reshape what has its shape takes a microsecond
    y = call((x if flat else x.reshape(tokens, handle.k)).contiguous(), *scale)
    if bias is not None:
        y += bias
    if activation != "none":
        y = activation_module(activation)(y)
    return y if flat else y.reshape(*x.shape[:-1], out_features)


@lru_cache(maxsize=1)
def has_dense_int8() -> bool:
    """Whether torch multiplies int8 weights here without losing part of a sum.

    Without VNNI its kernels add up pairs of products in 16 bits.

    Example:
        >>> has_dense_int8() in (True, False)
        True
    """
    ones = torch.ones(_PROBED, dtype=torch.float32)
    weight = torch.full((_PROBED, _PROBED), 127, dtype=torch.int8)
    try:
        y = _prepacked(weight, ones)(torch.full((2, _PROBED), float(LEVELS)), 1.0, 0)
    except (RuntimeError, AttributeError):
        return False
    return bool((y == 127 * LEVELS * _PROBED).all())


def _call_of(packed: Tensor, handle: Handle) -> _Call | None:
    """Torch's kernel with this weight, made at the first call and kept; None where there is none.

    Beside the packed weight it takes a byte for each element.
    """
    key = "dense int8"
    if key not in handle.device_calls:
        if not has_dense_int8():
            return None
        dense = open_packed(packed).unpack(packed)
        weight = quantize_weight(dense)
        # The scales of others are not those that follow from the weight.
        if not torch.allclose(weight.dequantize(), dense, rtol=1e-6, atol=0.0):
            return None
        handle.device_calls[key] = _prepacked(weight.values, weight.scales)
    return handle.device_calls[key]


def _prepacked(weight: Tensor, scales: Tensor) -> _Call:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    make: Any = torch._make_per_channel_quantized_tensor  # type: ignore[attr-defined]
    quantized: Any = torch.ops.quantized
    with warnings.catch_warnings():  # torch would have its quantised tensors given up
        warnings.simplefilter("ignore")
        packed = quantized.linear_prepack(make(weight, scales.double(), zeros, 0), None)
    return partial(_run, quantized.linear_with_input_q_dq_qweight_dq_output_fp32, packed)


def _run(run: Any, packed: Any, x: Tensor, scale: float, zero_point: int) -> Tensor:
    y: Tensor = run(x, scale, zero_point, packed)
    return y


def _range_of(x: Tensor) -> tuple[float, int] | None:
    low, high = (float(bound) for bound in torch.aminmax(x))
    span = (max(high, 0.0) - min(low, 0.0)) / LEVELS
    if not (math.isfinite(span) and 2 * LEAST_SCALE < span < MOST_SCALE / 2):
        return None
    found = scale_of_range(low, high)
    return found.scale, found.zero_point
