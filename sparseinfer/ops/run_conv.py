"""Cross-correlation with a packed weight: the checks, and the call of a kernel row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels.contract import NARROW, conv_output_shape, wrong_input_type, wrong_type
from sparseinfer.kernels.dispatch import device_call, same_device, takes_mixed
from sparseinfer.kernels.registry import Row
from sparseinfer.kernels.verbose import logged
from sparseinfer.ops.arguments import (
    BEST_ROW,
    check_conv_weight,
    checked_bias,
    on_two_axes,
)
from sparseinfer.ops.memory import address, require_memory

__all__ = ["conv_cpu", "conv_cuda"]


@logged("conv")
def conv_cpu(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
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
    """Compute a 1-D or 2-D cross-correlation on the CPU with the native row `row`.

    `x` is `[batch, C, w]` or `[batch, C, h, w]`; `kernel_size`, `stride` and `dilation` have one
    entry an axis and `padding` two (both ends). Returns `[batch, M, oh, ow]` (or without oh),
    contiguous. x and bias are float32, or both float16 or bfloat16: the arithmetic is float32 then
    too, between conversions, but for bfloat16 ones beside pairs of bfloat16. An x that is not
    contiguous (channels_last) is copied whole first, as are a float16 or bfloat16 x and y; beside
    those a call needs at most 20 MB a thread.

    Raises:
        RuntimeError: dtype, rank, channels or sizes do not fit, the memory of a tensor was
            released, or no row can run.
        ValueError: the packed buffer is not valid, or the activation or padding mode is unknown.

    Example:
        >>> from sparseinfer import pack
        >>> packed = pack(torch.ones(1, 1, 1, 1))
        >>> x = torch.ones(1, 1, 2, 2)
        >>> conv_cpu(x, packed, None, 1, (1, 1), (1, 1), (0,) * 4, (1, 1), 1).shape
        torch.Size([1, 1, 2, 2])
    """
    address(x, "the input")
    in_pairs = False
    if x.dtype in NARROW and (bias is None or bias.dtype is x.dtype):
        require_memory(bias=bias)
        bias = None if bias is None else bias.float()
        in_pairs = x.dtype is torch.bfloat16 and open_packed(packed).is_pairs
        if not in_pairs:
            return conv_cpu(
                x.float(), packed, bias, out_channels, kernel_size, stride, padding, dilation,
                groups, padding_mode, activation, threads, row,
            ).to(x.dtype)  # fmt: skip
    shape = conv_output_shape(
        x, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, activation
    )
    handle = open_packed(packed)
    check_conv_weight(handle, x, out_channels, kernel_size, groups)
    if handle.is_int8:
        raise RuntimeError(
            "expected the scale of the input beside an int8 weight of a convolution, got none; try "
            "convert_to_sparse(model, weights='int8', calibration=loader)"
        )
    if x.dtype is not torch.float32 and not in_pairs:
        raise wrong_input_type(x)
    if bias is not None:
        bias = checked_bias(bias, out_channels)
    y = x.new_empty(shape)
    if y.numel() == 0:
        return y
    x = x.contiguous()
    image, *geometry = on_two_axes(x, stride, padding, dilation)
    call = handle.weights.conv_bf16 if in_pairs else handle.weights.conv
    types = ("bfloat16", "bfloat16") if in_pairs else ()
    call(
        x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(), x.shape[0],
        *image, *geometry, padding_mode, activation, row, threads or torch.get_num_threads(),
        *types,
    )  # fmt: skip
    return y


@logged("conv")
def conv_cuda(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str = "zeros",
    activation: str = "none",
    threads: int = 0,
    row: Row | None = None,
) -> Tensor:
    """Compute a 1-D or 2-D cross-correlation on a CUDA device with the best device row, or `row`.

    Shapes are as in `conv_cpu`; x and bias are of the packed values' type, or float16 or bfloat16
    beside float32 values, between conversions. `threads` has no meaning.

    Raises:
        RuntimeError: device, dtype, rank, channels or sizes do not fit, or no row can run.
        ValueError: the packed buffer is not valid, or the activation or padding mode is unknown.

    Example:
        >>> from sparseinfer import pack
        >>> packed, x = pack(torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 2, 2)
        >>> try: conv_cuda(x, packed, None, 1, (1, 1), (1, 1), (0,) * 4, (1, 1), 1)
        ... except RuntimeError as error: print(str(error).split(",")[0])
        expected a kernel for conv in format panel on cpu with torch.float32
    """
    same_device(x, packed, bias)
    require_memory(input=x, bias=bias)
    options = (kernel_size, stride, padding, dilation, groups, padding_mode, activation)
    shape = conv_output_shape(x, out_channels, *options)
    if padding_mode != "zeros":  # the rows know no other
        x = functional.pad(x, (*padding[2:], *padding[:2]), padding_mode)
        options = (kernel_size, stride, [0] * len(padding), dilation, groups, "zeros", activation)
    handle = open_packed(packed)
    check_conv_weight(handle, x, out_channels, kernel_size, groups)
    if x.dtype is not handle.dtype and (x.dtype not in NARROW or handle.dtype is not torch.float32):
        raise wrong_type(x.dtype, handle.dtype)
    if x.dtype is not handle.dtype and not takes_mixed("conv", handle.weights.format):
        wide = None if bias is None else bias.float()
        return conv_cuda(
            x.float(), packed, wide, out_channels, *options, threads, row
        ).to(x.dtype)  # fmt: skip
    pixels = math.prod(shape) // max(1, out_channels)
    return device_call(handle, "conv", x, pixels, row)(x, packed, bias, out_channels, *options)
