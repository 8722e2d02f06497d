"""What a call has to bring, whichever kernel runs it, and the shape that it gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseinfer.kernels.activations import ACTIVATIONS, check_choice

__all__ = [
    "NARROW",
    "PADDING_MODES",
    "conv_output_shape",
    "dtype_name",
    "wrong_input_type",
    "wrong_type",
]

NARROW = (torch.float16, torch.bfloat16)
"""Types that the CPU operators take and give; they compute in float32."""


_DTYPE_NAMES = {
    torch.float32: "Float", torch.float64: "Double", torch.float16: "Half",
    torch.bfloat16: "BFloat16", torch.int64: "Long", torch.int32: "Int", torch.uint8: "Byte",
    torch.bool: "Bool",
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as torch's own error messages write it.

    Example:
        >>> dtype_name(torch.float64)
        'Double'
    """
    return _DTYPE_NAMES.get(dtype, str(dtype))


def wrong_type(got: torch.dtype, stored: torch.dtype) -> RuntimeError:
    """The error for an input of another type than the values of a weight on a device.

    Example:
        >>> str(wrong_type(torch.float16, torch.bfloat16)).split(":")[0]
        'mat1 and mat2 must have the same dtype, but got Half and BFloat16'
    """
    return RuntimeError(
        f"mat1 and mat2 must have the same dtype, but got {dtype_name(got)} and "
        f"{dtype_name(stored)}: expected an input of the packed values' type, got {got}; try "
        f"input.to({stored}), or converting the dense model.to({got}) again"
    )


PADDING_MODES: tuple[str, ...] = ("zeros", "reflect", "replicate", "circular")


def conv_output_shape(
    x: Tensor,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    activation: str,
) -> list[int]:
    """The shape that a convolution gives, after the checks that need no packed weight.

    Raises:
        RuntimeError: dtype, rank or sizes do not fit.
        ValueError: the activation or padding mode is unknown.

    Example:
        >>> x = torch.ones(2, 3, 8)
        >>> conv_output_shape(x, 4, (3,), (2,), (1, 1), (1,), 1, "zeros", "none")
        [2, 4, 4]
    """
    axes = len(kernel_size)
    if x.dtype is not torch.float32 and x.dtype not in NARROW:
        raise wrong_input_type(x)
    if x.dim() != axes + 2:
        raise RuntimeError(
            f"Expected {axes + 1}D (unbatched) or {axes + 2}D (batched) input to conv{axes}d, but "
            f"got input of size: {list(x.shape)}; try x.unsqueeze(0)"
        )
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    if len(stride) != axes or len(dilation) != axes or len(padding) != 2 * axes:
        raise RuntimeError(
            f"expected {axes} strides and dilations and {2 * axes} paddings, got {list(stride)}, "
            f"{list(dilation)} and {list(padding)}; try two paddings an axis"
        )
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError(
            f"expected input channels to be divisible by groups, got {x.shape[1]} channels and "
            f"groups={groups}; try groups=1"
        )
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise RuntimeError(
            "non-positive stride, non-positive dilation or negative padding is not supported: got "
            f"stride {list(stride)}, dilation {list(dilation)}, padding {list(padding)}; "
            "try padding=0"
        )
    shape = [x.shape[0], out_channels]
    for axis in range(axes):
        size, before, after = x.shape[axis + 2], padding[2 * axis], padding[2 * axis + 1]
        if padding_mode != "zeros":
            _check_wrapping(x, size, before, after, padding_mode)
        span = dilation[axis] * (kernel_size[axis] - 1) + 1
        room = size + before + after - span
        if room < 0:
            raise RuntimeError(
                f"Calculated padded input size per channel: ({size + before + after}). Kernel "
                f"size: ({span}). Kernel size can't be greater than actual input size; "
                "try a larger input"
            )
        shape.append(room // stride[axis] + 1)
    return shape


def wrong_input_type(x: Tensor) -> RuntimeError:
    """The error for a convolution's input of a type that no kernel takes.

    Example:
        >>> str(wrong_input_type(torch.ones(1, dtype=torch.float64))).split(" and ")[0]
        'Input type (Double)'
    """
    return RuntimeError(
        f"Input type ({dtype_name(x.dtype)}) and weight type (Float) should be the same: expected "
        f"a float32 input, or float16 or bfloat16 with a bias of that type, got {x.dtype}; try "
        "x.float() and module.float()"
    )


def _check_wrapping(x: Tensor, size: int, before: int, after: int, padding_mode: str) -> None:
    """Padding that takes its values from the image cannot reach past it."""
    limit = {"reflect": size - 1, "circular": size, "replicate": None}[padding_mode]
    if (limit is not None and max(before, after) > limit) or (size == 0 and before + after > 0):
        raise RuntimeError(
            "Padding size should be less than the corresponding input dimension, but got: padding "
            f"({before}, {after}) with padding_mode {padding_mode!r} at a dimension of size {size} "
            f"of input {list(x.shape)}; try a larger input or padding_mode='zeros'"
        )
