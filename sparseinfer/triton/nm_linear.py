"""N:M linear in Triton: y[N, M] = act(x[N, K] @ W[M, K]^T + bias), W read compressed.

W is stored as n value planes and n uint8 position planes, each [M][G] with G = ceil(K / 4): plane i
holds the i-th kept weight of every group of four columns and its place in the group. A program
loads a tile of every plane, expands it in registers (a compare and a select for each lane of the
group, two nested joins, a reshape) and feeds `tl.dot` with fp32 accumulation. W is the left
operand, so that a decode's few tokens pad the narrow side of the matrix instruction. Triton has no
sparse matrix instruction: what is saved is the memory traffic of W, so this is for small N.

x may have any strides, y is contiguous and aliases nothing. Keeping the values apart from their
positions follows the compressed 2:4 form of Mishra et al., "Accelerating Sparse Deep Neural
Networks" (2021); here a position takes a byte, so that a plane is read without unpacking.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparseinfer.activations import ACTIVATIONS, check_choice
from sparseinfer.triton import NmMeta, unsupported_reasons
from sparseinfer.triton.activate import activate


# N changes from call to call: specialised on, 1 and the multiples of 16 would compile anew.
@triton.jit(do_not_specialize=["N"])
def nm_linear_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    values_ptr,
    positions_ptr,
    bias_ptr,
    y_ptr,
    N,
    M,
    K,
    G,
    plane,
    stride_xn,
    stride_xk,
    KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DOT_IN_FP32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    BLOCK_K: tl.constexpr = 4 * BLOCK_G
    # One grid axis: a second one ends at 65535. Programs next to each other share the tile of x.
    tiles_m = tl.cdiv(M, BLOCK_M)
    rows = (tl.program_id(0) % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = (tl.program_id(0) // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = rows < M
    token_ok = tokens < N
    # 64 bits: rows times G and tokens times K exceed 2^31 for large layers and long prompts.
    row_start = rows.to(tl.int64) * G
    token_start = tokens.to(tl.int64) * stride_xn

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for g0 in range(0, G, BLOCK_G):
        groups = g0 + tl.arange(0, BLOCK_G)
        w_ok = row_ok[:, None] & (groups < G)[None, :]
        w_at = row_start[:, None] + groups[None, :]

        # Lane c of a group is the kept weight whose position is c, or zero. Masked groups are zero.
        v = tl.load(values_ptr + w_at, mask=w_ok, other=0.0)
        p = tl.load(positions_ptr + w_at, mask=w_ok, other=0)
        zero = tl.zeros_like(v)
        w0 = tl.where(p == 0, v, zero)
        w1 = tl.where(p == 1, v, zero)
        w2 = tl.where(p == 2, v, zero)
        w3 = tl.where(p == 3, v, zero)
        for i in tl.static_range(1, KEPT):
            v = tl.load(values_ptr + i * plane + w_at, mask=w_ok, other=0.0)
            p = tl.load(positions_ptr + i * plane + w_at, mask=w_ok, other=0)
            w0 = tl.where(p == 0, v, w0)
            w1 = tl.where(p == 1, v, w1)
            w2 = tl.where(p == 2, v, w2)
            w3 = tl.where(p == 3, v, w3)
        # A join appends the fastest axis, so lane 2a + b is element [.., a, b] of this nesting.
        w = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK_M, BLOCK_K))

        columns = 4 * g0 + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + token_start[None, :] + columns.to(tl.int64)[:, None] * stride_xk,
            mask=(columns < K)[:, None] & token_ok[None, :],
            other=0.0,
        )
        if DOT_IN_FP32:
            w = w.to(tl.float32)
            x = x.to(tl.float32)
        acc = tl.dot(w, x, acc, input_precision="ieee")

    if HAS_BIAS:
        acc += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    y = activate(acc, ACTIVATION)
    tl.store(
        y_ptr + tokens.to(tl.int64)[None, :] * M + rows[:, None],
        y.to(y_ptr.dtype.element_ty),
        mask=row_ok[:, None] & token_ok[None, :],
    )


@dataclass(frozen=True)
class Config:
    """Tile sizes (rows of W, tokens, groups of four columns) and launch options of one N bucket."""

    block_m: int
    block_n: int
    block_g: int
    num_warps: int
    num_stages: int


# (largest N of the bucket, config); the last bucket is open. Fixed here, so no call ever tunes.
HALF_CONFIGS = (
    (16, Config(16, 16, 64, 4, 4)),
    (32, Config(64, 32, 32, 4, 4)),
    (64, Config(64, 64, 16, 4, 4)),
    (None, Config(128, 128, 16, 8, 3)),
)
# fp32 with IEEE products has no tensor cores: both operand tiles live in registers and are smaller.
FLOAT_CONFIGS = (
    (16, Config(32, 16, 8, 4, 3)),
    (64, Config(64, 32, 8, 4, 3)),
    (None, Config(64, 64, 8, 8, 3)),
)


def config_for(tokens: int, dtype: torch.dtype) -> Config:
    """The tile configuration for N = `tokens` and inputs of `dtype`.

    Example:
        >>> config_for(1, torch.float16).block_n
        16
    """
    table = FLOAT_CONFIGS if dtype == torch.float32 else HALF_CONFIGS
    return next(c for limit, c in table if limit is None or tokens <= limit)


# Triton decides when the kernel is defined whether it is compiled or interpreted, and not again.
INTERPRETED = not isinstance(nm_linear_kernel, triton.JITFunction)


def _check(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    activation: str,
    meta: NmMeta,
) -> None:
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
    if x.dtype != meta.dtype:
        raise RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {x.dtype} and {meta.dtype}: expected "
            f"an input of the packed values' type; try input.to({meta.dtype})"
        )
    if x.shape[-1] != meta.in_features:
        tokens = math.prod(x.shape[:-1])
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({tokens}x{x.shape[-1]} and "
            f"{meta.in_features}x{out_features}): expected {meta.in_features} features in the "
            f"input's last dimension, got {x.shape[-1]}; try the input this layer was converted for"
        )
    if out_features != meta.out_features:
        raise RuntimeError(
            f"expected out_features of the packed weight, {meta.out_features}, got {out_features}; "
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
    if reasons := unsupported_reasons(x.device, x.dtype, n=meta.n, m=meta.m):
        raise RuntimeError(f"nm.linear.triton cannot run this problem: {'; '.join(reasons)}")
    if not INTERPRETED and x.device.type != "cuda":
        raise RuntimeError(
            "expected TRITON_INTERPRET=1 in the environment before the kernels were first used, "
            f"got it afterwards with tensors on {x.device}; try setting it when Python starts"
        )


def _planes(
    packed: torch.Tensor, out_features: int, meta: NmMeta
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of all value planes and all position planes of the packed buffer, each flat."""
    count = meta.n * out_features * meta.groups
    values_end = meta.values + count * meta.dtype.itemsize
    needed = max(values_end, meta.positions + count)
    if packed.numel() < needed:
        raise ValueError(
            f"expected a packed weight of at least {needed} bytes, got {packed.numel()}; "
            "try meta=NmMeta.from_info(formats.info(packed))"
        )
    if (packed.storage_offset() + meta.values) % meta.dtype.itemsize:
        raise ValueError(
            f"expected values at a multiple of {meta.dtype.itemsize} bytes, got byte "
            f"{packed.storage_offset() + meta.values} of the storage; try packed.clone()"
        )
    values = packed[meta.values : values_end].view(meta.dtype)
    return values, packed[meta.positions : meta.positions + count]


def nm_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    activation: str,
    *,
    meta: NmMeta,
) -> torch.Tensor:
    """Linear layer act(x W^T + bias) on a CUDA device, with W read in place from N:M planes.

    Products of float32 are IEEE (no TF32), sums are float32 for every type, and the activation is
    applied before the one rounding to the output's type. The packed buffer is taken as validated:
    positions are only compared, so a corrupt one gives wrong numbers but reads nothing outside it.

    Args:
        x: input [..., K] of the packed values' type, any strides.
        packed: the packed buffer, contiguous uint8 [bytes].
        bias: [M] of x's type, or None.
        out_features: M.
        activation: none, relu, relu6, gelu, gelu_tanh, silu, sigmoid or tanh.
        meta: where the planes lie in `packed`; `NmMeta.from_info(formats.info(packed))`.

    Returns:
        y [..., M], contiguous, of x's type.

    Raises:
        RuntimeError: the tensors are on different devices; x is 0-dimensional, its type is not the
            packed values', or its last dimension is not K; `out_features` is not the packed M; the
            bias's type is not x's or its shape is not [M]; `unsupported_reasons` names the device
            or the pattern; TRITON_INTERPRET was set after the first use.
        ValueError: the activation is unknown, or `packed` is not a contiguous 1-D uint8 buffer that
            holds the planes `meta` describes, aligned to their type.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (compressed storage).

    Example (needs a GPU, or TRITON_INTERPRET=1 with device = "cpu"):
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> kept, positions = torch.tensor([2.0, 3.0]), torch.tensor([1, 3], dtype=torch.uint8)
        >>> packed = torch.cat([kept.view(torch.uint8), positions]).to(device)
        >>> meta = NmMeta(1, 4, n=2, m=4, dtype=torch.float32, values=0, positions=8)
        >>> x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], device=device)
        >>> nm_linear(x, packed, None, 1, "none", meta=meta).item()
        3020.0
    """
    _check(x, packed, bias, out_features, activation, meta)
    values, positions = _planes(packed, out_features, meta)
    tokens = math.prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x2d = x.reshape(tokens, meta.in_features)
    config = config_for(tokens, x.dtype)
    grid = (triton.cdiv(out_features, config.block_m) * triton.cdiv(tokens, config.block_n),)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        nm_linear_kernel[grid](
            x2d,
            values,
            positions,
            x if bias is None else bias.contiguous(),
            y,
            tokens,
            out_features,
            meta.in_features,
            meta.groups,
            out_features * meta.groups,
            x2d.stride(0),
            x2d.stride(1),
            KEPT=meta.n,
            HAS_BIAS=bias is not None,
            ACTIVATION=activation,
            # The interpreter's dot is NumPy's matmul, which takes bfloat16's bits for integers.
            DOT_IN_FP32=INTERPRETED,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_G=config.block_g,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return y
