"""Calls of the int8 rows: x and y are float32, and x is rounded to uint8 on the way in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseinfer.formats.handles import Handle, open_packed
from sparseinfer.kernels.contract import NARROW, conv_output_shape, dtype_name
from sparseinfer.ops.arguments import (
    BEST_ROW,
    check_conv_weight,
    checked_bias,
    on_two_axes,
    wrong_features,
)
from sparseinfer.ops.memory import address, require_memory
from sparseinfer.quantize.activations import (
    LEVELS,
    MOST_SCALE,
    range_of_token,
    ranges_per_token,
)

__all__ = [
    "check_int8_linear",
    "conv_int8_cpu",
    "int8_handle",
    "linear_int8_cpu",
    "linear_per_token",
    "widened",
]

_FLOAT32 = torch.float32
_OUT = ("float32", "float32")
_NO_OUTPUT_SCALE = (1.0, 0)


def linear_int8_cpu(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    input_zero_point: Tensor,
    out_features: int,
    activation: str = "none",
    threads: int = 0,
    row: int = BEST_ROW,
) -> Tensor:
    """Compute act(x W^T + bias) with an int8 W and x rounded by one scale and zero point.

    `x` is `[..., K]`, `bias` `[M]` with M = `out_features`; returns `[..., M]`. All are float32, or
    all float16 or bfloat16, converted to float32 and back. `input_scale` and `input_zero_point`
    have one element each. What is beyond their range is the nearest end of it, NaN the lower one.

    Raises:
        RuntimeError: dtype or sizes do not fit, the weight is no int8 one, the memory of a tensor
            was released, or no row can run.
        ValueError: the packed buffer is not valid, or the activation is unknown.

    Example:
        >>> from sparseinfer import pack
        >>> packed, scale = pack(torch.eye(4), weights="int8"), torch.tensor(1.0)
        >>> linear_int8_cpu(torch.arange(4.0), packed, None, scale, torch.tensor(0), 4)
        tensor([0., 1., 2., 3.])
    """
    if x.dtype in NARROW:
        wide = widened(x, bias)
        return linear_int8_cpu(
            wide[0], packed, wide[1], input_scale, input_zero_point, out_features, activation,
            threads, row,
        ).to(x.dtype)  # fmt: skip
    handle = int8_handle(packed, x)
    tokens, bias = check_int8_linear(handle, x, bias, out_features)
    y = x.new_empty(*x.shape[:-1], out_features)
    if tokens:
        x = x.contiguous()
        handle.weights.linear_int8(
            x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(), tokens, handle.k,
            out_features, False, activation, row, threads or torch.get_num_threads(), *_OUT,
            float(input_scale), int(input_zero_point), 0, 0, *_NO_OUTPUT_SCALE,
        )  # fmt: skip
    return y


def linear_per_token(
    x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, activation: str = "none",
    threads: int = 0, row: int = BEST_ROW,
) -> Tensor:  # fmt: skip
    """As `linear_int8_cpu`, each token of x rounded by its own range; x and bias are float32.

    A token that holds NaN or Inf gives NaN.

    Raises:
        RuntimeError, ValueError: see `linear_int8_cpu`.

    Example:
        >>> from sparseinfer import pack
        >>> x = torch.tensor([[0.0, 255.0], [0.0, 2.55]])
        >>> linear_per_token(x, pack(torch.eye(2), weights="int8"), None, 2)
        tensor([[  0.0000, 255.0000],
                [  0.0000,   2.5500]])
    """
    handle = int8_handle(packed, x)
    tokens, bias = check_int8_linear(handle, x, bias, out_features)
    y = x.new_empty(*x.shape[:-1], out_features)
    if tokens == 0:
        return y
    x = x.contiguous()
    unbounded = None
    ranges: tuple[float, int, int, int]
    if tokens == 1:
        scale, zero_point = range_of_token(x)
        if not scale <= MOST_SCALE:
            if math.isfinite(scale):
                raise _beyond(scale)
            return y.fill_(torch.nan)
        ranges = scale, zero_point, 0, 0
    else:
        scales, zero_points = ranges_per_token(x.reshape(tokens, handle.k))
        if not float(scales.max()) <= MOST_SCALE:
            scales, unbounded = _bounded(scales)
        ranges = 1.0, 0, scales.data_ptr(), zero_points.data_ptr()
    handle.weights.linear_int8(
        x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(), tokens, handle.k,
        out_features, False, activation, row, threads or torch.get_num_threads(), *_OUT, *ranges,
        *_NO_OUTPUT_SCALE,
    )  # fmt: skip
    if unbounded is not None:
        y.view(tokens, out_features)[unbounded] = torch.nan
    return y


def conv_int8_cpu(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    input_zero_point: Tensor,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str = "zeros",
    activation: str = "none",
    threads: int = 0,
    row: int = BEST_ROW,
) -> Tensor:
    """Compute a cross-correlation with an int8 weight and x rounded by one scale and zero point.

    Shapes are those of `sparseinfer.ops.run_conv.conv_cpu`, types those of `linear_int8_cpu`.

    Raises:
        RuntimeError, ValueError: see `linear_int8_cpu`.

    Example:
        >>> from sparseinfer import pack
        >>> packed, scale = pack(torch.ones(1, 1, 1), weights="int8"), torch.tensor(1.0)
        >>> x = torch.tensor([[[3.0, 4.0]]])
        >>> conv_int8_cpu(x, packed, None, scale, torch.tensor(0), 1, (1,), (1,), (0, 0), (1,), 1)
        tensor([[[3., 4.]]])
    """
    if x.dtype in NARROW:
        wide = widened(x, bias)
        return conv_int8_cpu(
            wide[0], packed, wide[1], input_scale, input_zero_point, out_channels, kernel_size,
            stride, padding, dilation, groups, padding_mode, activation, threads, row,
        ).to(x.dtype)  # fmt: skip
    shape = conv_output_shape(
        x, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, activation
    )
    handle = int8_handle(packed, x)
    check_conv_weight(handle, x, out_channels, kernel_size, groups)
    if bias is not None:
        bias = checked_bias(bias, out_channels)
    y = x.new_empty(shape)
    if y.numel() == 0:
        return y
    x = x.contiguous()
    image, *geometry = on_two_axes(x, stride, padding, dilation)
    handle.weights.conv_int8(
        x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(), x.shape[0],
        *image, *geometry, padding_mode, activation, row, threads or torch.get_num_threads(),
        *_OUT, float(input_scale), int(input_zero_point), *_NO_OUTPUT_SCALE,
    )  # fmt: skip
    return y


def _bounded(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scales for the kernel, and which tokens have none, as they hold NaN or Inf."""
    unbounded = ~torch.isfinite(scales)
    scales = torch.where(unbounded, torch.ones_like(scales), scales)
    if float(scales.max()) > MOST_SCALE:
        raise _beyond(float(scales.max()))
    return scales, unbounded


def _beyond(scale: float) -> RuntimeError:
    return RuntimeError(
        f"expected inputs whose scales are at most 2^48, got values up to {LEVELS * scale:.3g}; "
        "try inputs of another unit, or the float layer"
    )


def int8_handle(packed: Tensor, x: Tensor) -> Handle:
    """The handle of an int8 weight, beside an input that its kernels take.

    Raises:
        RuntimeError: it is none, the input is not float32, or its memory was released.

    Example:
        >>> from sparseinfer import pack
        >>> int8_handle(pack(torch.eye(4), weights="int8"), torch.ones(4)).k
        4
    """
    handle = open_packed(packed)
    if not handle.is_int8:
        raise RuntimeError(
            f"expected an int8 weight, got {handle.info['value_type']}; try "
            "sparseinfer.pack(weight, weights='int8')"
        )
    if x.dtype is not _FLOAT32:
        raise RuntimeError(
            f"expected a float32, float16 or bfloat16 input for an int8 weight, got {x.dtype}; try "
            "x.float()"
        )
    address(x, "the input")  # before anything reads it
    return handle


def widened(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A float16 or bfloat16 input and its bias in float32.

    Raises:
        RuntimeError: the bias has another type, or the memory of one was released.

    Example:
        >>> widened(torch.ones(2).half(), None)
        (tensor([1., 1.]), None)
    """
    require_memory(input=x, bias=bias)
    if bias is not None and bias.dtype is not x.dtype:
        raise RuntimeError(
            f"expected a bias of the input's type, got {dtype_name(bias.dtype)} beside "
            f"{dtype_name(x.dtype)}; try x.float() and module.float()"
        )
    return x.float(), None if bias is None else bias.float()


def check_int8_linear(
    handle: Handle, x: Tensor, bias: Tensor | None, out_features: int
) -> tuple[int, Tensor | None]:
    """The number of tokens, and the bias as contiguous memory, after the checks of shapes.

    Raises:
        RuntimeError: input, bias and weight do not fit together.

    Example:
        >>> from sparseinfer import pack
        >>> x = torch.ones(3, 4)
        >>> handle = int8_handle(pack(torch.eye(4), weights="int8"), x)
        >>> check_int8_linear(handle, x, None, 4)
        (3, None)
    """
    if len(handle.shape) != 2 or handle.m != out_features:
        raise RuntimeError(
            f"expected a packed weight of {out_features} rows and two dimensions, got "
            f"{list(handle.shape)}; try the weight that this layer was built with"
        )
    if x.dim() == 0 or x.shape[-1] != handle.k:
        raise wrong_features(x, handle)
    return x.numel() // handle.k, None if bias is None else checked_bias(bias, out_features)
