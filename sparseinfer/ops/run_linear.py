"""y = act(x W^T + bias) with a packed W: the checks, and the call of a kernel row."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.formats.handles import Handle, open_packed
from sparseinfer.kernels.contract import NARROW, dtype_name, wrong_type
from sparseinfer.kernels.dispatch import device_call, same_device, takes_mixed
from sparseinfer.kernels.registry import Row
from sparseinfer.kernels.verbose import logged
from sparseinfer.ops.arguments import BEST_ROW, checked_bias, wrong_features
from sparseinfer.ops.memory import address, require_memory
from sparseinfer.ops.run_int8 import linear_per_token

__all__ = ["linear_cpu", "linear_cuda"]

# Looked up once: on a small layer each look-up shows.
_FLOAT32 = torch.float32
_threads = torch.get_num_threads


@logged("linear")
def linear_cpu(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    threads: int = 0,
    row: int = BEST_ROW,
) -> Tensor:
    """Compute act(x W^T + bias) on the CPU with the native row `row` (an index of `native.rows()`).

    `x` is `[..., K]`, `bias` `[M]` with M = `out_features`; returns `[..., M]`. All are float32, or
    all float16 or bfloat16: the arithmetic is float32 then too, between conversions. With an int8
    weight each token of x is rounded to uint8 by its own range; with pairs of bfloat16 x is rounded
    to that type, and only a float16 one is converted first.

    Raises:
        RuntimeError: dtype, device, rank or feature count do not fit, the memory of a tensor was
            released, or no row can run.
        ValueError: the packed buffer is not valid, or the activation is unknown.

    Example:
        >>> from sparseinfer import pack
        >>> packed = pack(torch.eye(4))
        >>> linear_cpu(torch.arange(4.0), packed, None, 4)
        tensor([0., 1., 2., 3.])
    """
    handle = open_packed(packed)
    k = handle.k
    shape = [*x.shape]
    if x.dtype is not _FLOAT32 or not shape or shape[-1] != k:
        return _linear_narrow(x, packed, bias, out_features, activation, threads, row)
    if handle.linear_m != out_features:
        if handle.is_int8:
            return linear_per_token(x, packed, bias, out_features, activation, threads, row)
        raise RuntimeError(
            f"expected a packed weight of shape [{out_features}, {k}], got {list(handle.shape)}; "
            "try the weight that this layer was built with"
        )
    if bias is not None and (
        bias.dtype is not _FLOAT32 or bias.shape != (out_features,) or not bias.is_contiguous()
    ):
        bias = checked_bias(bias, out_features)
    of_bias = 0 if bias is None else address(bias, "bias")
    of_x = address(x, "the input")
    shape[-1] = out_features
    y = x.new_empty(*shape)
    n = y.numel() // out_features
    if n == 0:
        return y
    pitch = k
    if not x.is_contiguous():
        if x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= k:
            pitch = x.stride(0)
        else:
            x = x.contiguous()
            of_x = x.data_ptr()
    handle.linear(
        of_x, y.data_ptr(), of_bias,
        n, pitch, out_features, False, activation, row, threads or _threads(),
    )  # fmt: skip
    return y


def _linear_narrow(
    x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, activation: str,
    threads: int, row: int,
) -> Tensor:  # fmt: skip
    """A float16 or bfloat16 call, computed in float32 between two roundings; else the error."""
    handle = open_packed(packed)
    require_memory(input=x, bias=bias)
    if x.dtype not in NARROW or x.dim() == 0 or x.shape[-1] != handle.k:
        raise _mismatch(x, handle)
    if bias is not None:
        if bias.dtype is not x.dtype:
            raise _mismatch(x, handle)
        bias = bias.float()
    if handle.is_pairs and x.dtype is torch.bfloat16 and handle.linear_m == out_features:
        return _linear_pairs(x, handle, bias, activation, threads, row)
    return linear_cpu(x.float(), packed, bias, out_features, activation, threads, row).to(x.dtype)


def _linear_pairs(
    x: Tensor, handle: Handle, bias: Tensor | None, activation: str, threads: int, row: int
) -> Tensor:
    """A bfloat16 call that needs no conversion; the bias is float32."""
    bias = None if bias is None else checked_bias(bias, handle.m)
    y = x.new_empty(*x.shape[:-1], handle.m)
    if y.numel():
        x = x.contiguous()
        handle.weights.linear_bf16(
            x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(),
            y.numel() // handle.m, handle.k, handle.m, False, activation, row,
            threads or _threads(), "bfloat16", "bfloat16",
        )  # fmt: skip
    return y


def _mismatch(x: Tensor, handle: Handle) -> RuntimeError:
    if x.dtype is not torch.float32:
        return RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {dtype_name(x.dtype)} and Float: "
            f"expected a float32 input, or float16 or bfloat16 with a bias of that type, got "
            f"{x.dtype}; try x.float() and module.float()"
        )
    return wrong_features(x, handle)


@logged("linear")
def linear_cuda(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    threads: int = 0,
    row: Row | None = None,
) -> Tensor:
    """Compute act(x W^T + bias) on a CUDA device with the best device row, or with `row`.

    `x` is `[..., K]` of the packed values' type (float32, float16 or bfloat16), `bias` `[M]` with
    M = `out_features`; returns `[..., M]`. Values of float32 take float16 and bfloat16 too, as they
    do on the CPU, between conversions. The buffer is copied to the host once, to be validated;
    `threads` has no meaning.

    Raises:
        RuntimeError: device, dtype or the feature count do not fit, or no row can run.
        ValueError: the packed buffer is not valid, or the activation is unknown.

    Example:
        >>> from sparseinfer import pack  # doctest: +SKIP
        >>> packed = pack(torch.eye(4), "nm").cuda()  # doctest: +SKIP
        >>> linear_cuda(torch.ones(4, device="cuda"), packed, None, 4)  # doctest: +SKIP
        tensor([1., 1., 1., 1.], device='cuda:0')
    """
    same_device(x, packed, bias)
    require_memory(input=x, bias=bias)
    handle = open_packed(packed)
    if handle.linear_m != out_features:
        raise RuntimeError(
            f"expected a packed weight of {out_features} rows and two dimensions, got "
            f"{list(handle.shape)}; try the weight that this layer was built with"
        )
    if x.dtype is not handle.dtype and (x.dtype not in NARROW or handle.dtype is not _FLOAT32):
        raise wrong_type(x.dtype, handle.dtype)
    if x.dtype is not handle.dtype and not takes_mixed("linear", handle.weights.format):
        wide = None if bias is None else bias.float()
        y = linear_cuda(x.float(), packed, wide, out_features, activation, threads, row)
        return y.to(x.dtype)
    tokens = x.numel() // max(1, x.shape[-1]) if x.dim() else 1
    call = device_call(handle, "linear", x, tokens, row)
    return call(x, packed, bias, out_features, activation)
