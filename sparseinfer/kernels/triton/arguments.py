"""The checks of what a Triton linear kernel is called with, and what they say when it is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseinfer.kernels.activations import ACTIVATIONS, check_choice

__all__ = ["check_linear", "section"]


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
    tensors = {"input": x, "packed weight": packed} | ({} if bias is None else {"bias": bias})
    if len({t.device for t in tensors.values()}) > 1:
        got = ", ".join(f"{t.device} ({name})" for name, t in tensors.items())
        raise RuntimeError(
            "Expected all tensors to be on the same device, but got "
            f"{got}; try input.to('{packed.device}')"
        )
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
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not packed.is_contiguous():
        raise ValueError(
            f"expected the packed weight as contiguous 1-D uint8, got {packed.dim()}-D "
            f"{packed.dtype} of strides {packed.stride()}; try the buffer of formats.pack"
        )
    if reasons:
        raise RuntimeError(f"{row} cannot run this problem: {'; '.join(reasons)}")
    if not interpreted and x.device.type != "cuda":
        raise RuntimeError(
            "expected TRITON_INTERPRET=1 in the environment before the kernels were first used, "
            f"got it afterwards with tensors on {x.device}; try setting it when Python starts"
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
