"""2:4 linear layers on the sparse tensor cores: the checks, and the call of the CUDA kernel."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from sparseinfer.kernels.activations import ACTIVATIONS, check_choice
from sparseinfer.kernels.cuda import library
from sparseinfer.kernels.cuda.stream import CHUNK_COLUMNS, TILE_ROWS, UNIT_BYTES
from sparseinfer.kernels.limits import cuda_reasons
from sparseinfer.kernels.row import Problem, Row

__all__ = ["MAX_TOKENS", "ROW", "limits", "new_workspace", "nm24_linear", "workspace_bytes"]

MAX_TOKENS = 64
"""The largest N of a call: past it the dense product is bound by arithmetic, not by memory."""

_VALUE_TYPES = {torch.float16: 1, torch.bfloat16: 2}
_INVALID = -1


def limits(problem: Problem) -> list[str]:
    """Why the kernel cannot run such a problem here; empty when it can.

    Example:
        >>> limits(Problem("linear", "nm", dtype=torch.float16))[-1]
        'expected a CUDA device, got cpu; try moving the module with .cuda()'
    """
    reasons = library.missing_reasons()
    n, m = problem.n, problem.m
    if (n, m) not in ((1, 4), (2, 4)):
        reasons.append(f"expected 1:4 or 2:4 weights, got {n}:{m}; try packing with n=2, m=4")
    if problem.dtype not in _VALUE_TYPES:
        got = str(problem.dtype).removeprefix("torch.")
        reasons.append(f"expected input of float16 or bfloat16, got {got}; try input.half()")
    if problem.N > MAX_TOKENS:
        reasons.append(f"expected at most {MAX_TOKENS} tokens, got {problem.N}; try dense")
    return reasons + cuda_reasons(problem.device)


def _unproven(problem: Problem) -> list[str]:
    """Why the row runs nothing yet, whatever `limits` says."""
    return [
        "expected a kernel that a GPU has proven, got one that has only been compiled and "
        "emulated; try nm.linear.triton"
    ]


ROW = Row(
    "nm.linear.mma_sp", "nm", "linear", ("float16", "bfloat16"), isa="mma_sp", device="cuda",
    refuses=_unproven,
)  # fmt: skip


def workspace_bytes(m: int, n: int, k: int, multiprocessors: int) -> int:
    """Bytes of workspace that a call on N = `n` tokens needs; needs the library, and no GPU.

    Raises:
        ValueError: a size is out of range.
        RuntimeError: the library is not there.

    Example (needs the library):
        >>> workspace_bytes(28672, 1, 128, 132)  # doctest: +SKIP
        0
    """
    size = library.load().si_cuda_nm24_workspace(m, n, k, multiprocessors, None)
    if size < 0:
        raise ValueError(
            f"expected M >= 1, 1 <= N <= 64, 1 <= K <= 2^30 and a multiprocessor, got M = {m}, "
            f"N = {n}, K = {k} and {multiprocessors}; try dense"
        )
    return size


def new_workspace(m: int, n: int, k: int, device: torch.device) -> Tensor:
    """A workspace for calls of up to N = `n` tokens, on one stream at a time.

    Layers of the same M may share it; it starts with counters, one for each 32 rows, that another
    M would overwrite.

    Raises:
        ValueError: a size is out of range.
        RuntimeError: the library is not there.

    Example (needs a GPU and the library):
        >>> new_workspace(4096, 8, 4096, torch.device("cuda")).dtype  # doctest: +SKIP
        torch.uint8
    """
    multiprocessors = _multiprocessors(device)
    largest = max(workspace_bytes(m, tokens, k, multiprocessors) for tokens in range(1, n + 1))
    return torch.zeros(largest, dtype=torch.uint8, device=device)


def nm24_linear(
    x: Tensor,
    stream: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str,
    *,
    workspace: Tensor,
) -> Tensor:
    """Compute act(x W^T + bias) on a CUDA device, on torch's current stream.

    Sums are float32, and the activation comes before the one rounding to x's type. A result is the
    same at every call. Allocates y and nothing else and never waits, so CUDA graphs can hold it.

    Args:
        x: [..., K] in the weight's type, float16 or bfloat16, at most 64 tokens.
        stream: the weight, as `weight_stream` gives it.
        bias: [M] of x's type, or None.
        out_features: M.
        activation: none, relu, relu6, gelu, gelu_tanh, silu, sigmoid or tanh.
        workspace: `new_workspace` of as many tokens or more; calls on two streams need two.

    Returns:
        y [..., M], contiguous, of x's type.

    Raises:
        RuntimeError: the tensors are on different devices, types or shapes do not fit each other,
            `limits` names the device or the library, or CUDA refuses the launch.
        ValueError: the activation is unknown, or `stream` or `workspace` is not contiguous 1-D
            uint8 of the size and alignment that the shape asks for.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.

    Example (needs a GPU and the library):
        >>> y = nm24_linear(x, stream, None, 8, "none", workspace=workspace)  # doctest: +SKIP
    """
    tokens = check_call(x, stream, bias, out_features, activation, workspace)
    if reasons := limits(Problem("linear", "nm", x.device, x.dtype, N=tokens)):
        raise RuntimeError(f"nm.linear.mma_sp cannot run this problem: {'; '.join(reasons)}")
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    columns = x.shape[-1]
    x2d = x.reshape(tokens, columns)
    if x2d.stride(1) != 1 or (tokens > 1 and x2d.stride(0) < columns):
        x2d = x2d.contiguous()
    bias = None if bias is None else bias.contiguous()
    loaded = library.load()
    # The library launches on the current device, which need not be the tensors'.
    with torch.cuda.device(x.device):
        status = loaded.si_cuda_nm24_linear(
            _VALUE_TYPES[x.dtype], stream.data_ptr(), x2d.data_ptr(), x2d.stride(0),
            None if bias is None else bias.data_ptr(), y.data_ptr(),
            out_features, tokens, columns, ACTIVATIONS.index(activation),
            workspace.data_ptr(), workspace.numel(), _multiprocessors(x.device),
            torch.cuda.current_stream(x.device).cuda_stream,
        )  # fmt: skip
    if status == _INVALID:
        needed = workspace_bytes(out_features, tokens, columns, _multiprocessors(x.device))
        raise ValueError(
            f"expected a weight stream at a multiple of 16 bytes and {needed} bytes of workspace "
            f"at a multiple of 256, got addresses {stream.data_ptr():#x} and "
            f"{workspace.data_ptr():#x} and {workspace.numel()} bytes; try new_workspace"
        )
    if status != 0:
        message = loaded.si_cuda_error_string(status).decode()
        raise RuntimeError(
            f"expected nm.linear.mma_sp to launch, got {message}; try nm.linear.triton"
        )
    return y


def check_call(
    x: Tensor, stream: Tensor, bias: Tensor | None, out_features: int, activation: str,
    workspace: Tensor,
) -> int:  # fmt: skip
    """Raise unless the arguments of `nm24_linear` fit each other; returns N. Needs no GPU.

    Example:
        >>> empty = torch.zeros(0, dtype=torch.uint8)
        >>> check_call(torch.ones(3, 4).half(), torch.zeros(4608).byte(), None, 8, "none", empty)
        3
    """
    tensors = {"input": x, "weight stream": stream, "workspace": workspace}
    tensors |= {} if bias is None else {"bias": bias}
    if len({tensor.device for tensor in tensors.values()}) > 1:
        got = ", ".join(f"{tensor.device} ({name})" for name, tensor in tensors.items())
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got {got}; "
            f"try input.to('{stream.device}')"
        )
    if x.dim() == 0 or x.shape[-1] == 0 or out_features < 1:
        raise RuntimeError(
            f"expected an input of at least one feature and one output, got shape "
            f"{list(x.shape)} and {out_features}; try dense"
        )
    if bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (out_features,)):
        raise RuntimeError(
            f"expected a bias of {x.dtype} of shape [{out_features}], got {bias.dtype} of shape "
            f"{list(bias.shape)}; try bias.to({x.dtype})"
        )
    check_choice("activation", activation, ACTIVATIONS)
    size = -(-out_features // TILE_ROWS) * -(-x.shape[-1] // CHUNK_COLUMNS) * UNIT_BYTES
    for name, tensor in (("weight stream", stream), ("workspace", workspace)):
        if tensor.dtype != torch.uint8 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"expected the {name} as contiguous 1-D uint8, got {tensor.dim()}-D "
                f"{tensor.dtype} of strides {tensor.stride()}; try {name.split()[-1]}.clone()"
            )
    if stream.numel() != size:
        raise ValueError(
            f"expected a weight stream of {size} bytes for [{out_features}, {x.shape[-1]}], got "
            f"{stream.numel()}; try the input this layer was converted for"
        )
    return math.prod(x.shape[:-1])


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
