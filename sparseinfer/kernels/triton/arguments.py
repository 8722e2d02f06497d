"""The checks of what a Triton kernel is called with, and what they say when it is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseinfer.kernels.activations import ACTIVATIONS, check_choice

__all__ = ["check_conv", "check_linear", "require_format", "section"]


def check_linear(
    row: str,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str,
    *,
    shape: tuple[int, int],
    dtype: torch.dtype,
    reasons: Sequence[str],
    interpreted: bool,
) -> None:
    """Check the arguments of y = act(x W^T + bias) for W of `shape` (M, K) with values of `dtype`.

    `reasons` are why `row` cannot run the problem; `interpreted` says how its kernels were built.

    Raises:
        RuntimeError: the tensors are on different devices; x is 0-dimensional, its type is not
            `dtype`, or its last dimension is not K; `out_features` is not M; the bias's type is not
            x's or its shape is not [M]; there are reasons; TRITON_INTERPRET was set too late.
        ValueError: the activation is unknown, or `packed` is not a contiguous 1-D uint8 buffer.

    Example:
        >>> x, packed = torch.ones(4), torch.zeros(8, dtype=torch.uint8)
        >>> check_linear("nm", x, packed, None, 2, "relu", shape=(2, 4), dtype=torch.float32,
        ...              reasons=[], interpreted=True)
    """
    m, k = shape
    _check_device(x, packed, bias)
    if x.dim() == 0:
        raise RuntimeError(
            "both arguments to linear need to be at least 1D, but they are 0D and 2D; "
            "try input.reshape(1)"
        )
    if x.dtype != dtype:
        raise RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {x.dtype} and {dtype}: expected "
            f"an input of the packed values' type; try input.to({dtype})"
        )
    if x.shape[-1] != k:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({math.prod(x.shape[:-1])}x{x.shape[-1]} "
            f"and {k}x{out_features}): expected {k} features in the input's last dimension, got "
            f"{x.shape[-1]}; try the input this layer was converted for"
        )
    if out_features != m:
        raise RuntimeError(
            f"expected out_features of the packed weight, {m}, got {out_features}; "
            "try the weight that this layer was built with"
        )
    if bias is not None and bias.dtype != x.dtype:
        raise RuntimeError(
            f"expected bias and input to have the same dtype, got {bias.dtype} and {x.dtype}; "
            f"try bias.to({x.dtype})"
        )
    if bias is not None and tuple(bias.shape) != (out_features,):
        raise RuntimeError(
            f"expected bias of shape ({out_features},), got {tuple(bias.shape)}; "
            "try one value for each output feature"
        )
    check_choice("activation", activation, ACTIVATIONS)
    _check_buffer(packed)
    if reasons:
        raise RuntimeError(f"{row} cannot run this problem: {'; '.join(reasons)}")
    _check_built(x, interpreted)


def check_conv(
    row: str,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: Sequence[int],
    groups: int,
    padding_mode: str,
    *,
    held: tuple[int, int, tuple[int, int], int],
    dtype: torch.dtype,
    reasons: Sequence[str],
    interpreted: bool,
) -> None:
    """Check the arguments of a convolution whose packed weight is `held` (outputs, channels of a
    group, kernel, groups) with values of `dtype`; `conv_output_shape` has checked the others.

    `reasons` and `interpreted` are as in `check_linear`.

    Raises:
        RuntimeError: the tensors are on different devices, types or sizes do not fit, the padding
            mode is not zeros, there are reasons, or TRITON_INTERPRET was set too late.
        ValueError: `packed` is not a contiguous 1-D uint8 buffer.

    Example:
        >>> x, packed = torch.ones(1, 2, 3), torch.zeros(8, dtype=torch.uint8)
        >>> check_conv("bsr", x, packed, None, 4, (1,), 1, "zeros", held=(4, 2, (1, 1), 1),
        ...            dtype=torch.float32, reasons=[], interpreted=True)
    """
    _check_device(x, packed, bias)
    if x.dtype != dtype:
        raise RuntimeError(
            f"Input type ({x.dtype}) and weight type ({dtype}) should be the same; "
            f"try input.to({dtype})"
        )
    given = (out_channels, x.shape[1] // groups, (1, *kernel_size)[-2:], groups)
    if given != held:
        raise RuntimeError(
            "expected a packed weight of (outputs, channels of a group, kernel, groups) "
            f"{given}, got {held}; try the weight that this layer was built with"
        )
    if bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (out_channels,)):
        raise RuntimeError(
            f"expected a bias of {x.dtype} and shape ({out_channels},), got {bias.dtype} and "
            f"{tuple(bias.shape)}; try one value of the input's type for each output channel"
        )
    if padding_mode != "zeros":
        reasons = [
            *reasons, f"expected padding_mode zeros, got {padding_mode}; try padding the input",
        ]  # fmt: skip
    if reasons:
        raise RuntimeError(f"{row} cannot run this problem: {'; '.join(reasons)}")
    _check_buffer(packed)
    _check_built(x, interpreted)


def _check_device(x: Tensor, packed: Tensor, bias: Tensor | None) -> None:
    tensors = {"input": x, "packed weight": packed} | ({} if bias is None else {"bias": bias})
    if len({t.device for t in tensors.values()}) > 1:
        got = ", ".join(f"{t.device} ({name})" for name, t in tensors.items())
        raise RuntimeError(
            "Expected all tensors to be on the same device, but got "
            f"{got}; try input.to('{packed.device}')"
        )


def _check_buffer(packed: Tensor) -> None:
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not packed.is_contiguous():
        raise ValueError(
            f"expected the packed weight as contiguous 1-D uint8, got {packed.dim()}-D "
            f"{packed.dtype} of strides {packed.stride()}; try the buffer of formats.pack"
        )


def _check_built(x: Tensor, interpreted: bool) -> None:
    if not interpreted and x.device.type != "cuda":
        raise RuntimeError(
            "expected TRITON_INTERPRET=1 in the environment before the kernels were first used, "
            f"got it afterwards with tensors on {x.device}; try setting it when Python starts"
        )


def require_format(info: Mapping[str, Any], name: str) -> None:
    """Raise ValueError unless `info` (of `formats.info`) describes a buffer in this format.

    Example:
        >>> require_format({"format": "nm"}, "nm")
    """
    if info["format"] != name:
        raise ValueError(
            f"expected a packed buffer in the {name} format, got {info['format']}; "
            f"try packing the weight with format='{name}'"
        )


def section(packed: Tensor, at: int, count: int, dtype: torch.dtype) -> Tensor:
    """`count` elements of `dtype` from byte `at` of the packed buffer, as a view of it.

    Raises:
        ValueError: the buffer ends before them, or they are not aligned to their size.

    Example:
        >>> section(torch.zeros(16, dtype=torch.uint8), 8, 2, torch.float32)
        tensor([0., 0.])
    """
    end = at + count * dtype.itemsize
    if packed.numel() < end:
        raise ValueError(
            f"expected a packed weight of at least {end} bytes, got {packed.numel()}; "
            "try the description that formats.info(packed) gives"
        )
    if (packed.storage_offset() + at) % dtype.itemsize:
        raise ValueError(
            f"expected values at a multiple of {dtype.itemsize} bytes, got byte "
            f"{packed.storage_offset() + at} of the storage; try packed.clone()"
        )
    return packed[at:end].view(dtype)
