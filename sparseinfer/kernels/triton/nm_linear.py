"""N:M linear in Triton: y[N, M] = act(x[N, K] @ W[M, K]^T + bias), W read compressed.

W is stored as n value planes [M][G] with G = ceil(K / 4): plane i holds the i-th kept weight of
every group of four columns. The lane plane (`nm_lanes.py`), made from the buffer's positions once,
says in a nibble which lanes of the group those are. One token takes `nm_vector.py`. For more, a
program loads a tile of every plane, expands it in registers (selects, two nested joins, a reshape)
and feeds `tl.dot` with fp32 accumulation. W is the left operand, so that a decode's few tokens pad
the narrow side of the matrix instruction. Triton has no sparse matrix instruction: what is saved is
the memory traffic of W, so this is for small N. Where rows and tokens give too few programs to keep
the memory busy, K is split among more of them, and `split_sum.py` adds up in a fixed order.

x may have any strides, y is contiguous and aliases nothing. Keeping the values apart from their
positions follows the compressed 2:4 form of Mishra et al., "Accelerating Sparse Deep Neural
Networks" (2021).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton.activate import activate
from sparseinfer.kernels.triton.arguments import check_linear, section
from sparseinfer.kernels.triton.nm_lanes import HALF, bytes_read, lane_plane
from sparseinfer.kernels.triton.nm_planes import NmMeta, nm_limits
from sparseinfer.kernels.triton.nm_vector import nm_vector_kernel
from sparseinfer.kernels.triton.split_sum import split_sum, steps_per_split


@triton.jit
def expand(  # type: ignore[no-untyped-def]
    lanes,
    at,
    ok,
    values_ptr,
    plane,
    KEPT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of W, dense: lane c of a group is the kept weight that stands there, or zero."""
    in0 = (lanes & 1) != 0
    in1 = (lanes & 2) != 0
    in2 = (lanes & 4) != 0
    in3 = (lanes & 8) != 0
    v = tl.load(values_ptr + at, mask=ok, other=0.0)
    zero = tl.zeros_like(v)
    if KEPT == 1:
        w0 = tl.where(in0, v, zero)
        w1 = tl.where(in1, v, zero)
        w2 = tl.where(in2, v, zero)
        w3 = tl.where(in3, v, zero)
    else:
        # Exactly KEPT bits are set: how many lie below or above a lane tells whose it is.
        u = tl.load(values_ptr + plane + at, mask=ok, other=0.0)
        if KEPT == 2:
            w0 = tl.where(in0, v, zero)
            w1 = tl.where(in1, tl.where(in0, u, v), zero)
            w2 = tl.where(in2, tl.where(in3, v, u), zero)
            w3 = tl.where(in3, u, zero)
        else:
            t = tl.load(values_ptr + 2 * plane + at, mask=ok, other=0.0)
            if KEPT == 3:
                w0 = tl.where(in0, v, zero)
                w1 = tl.where(in1, tl.where(in0, u, v), zero)
                w2 = tl.where(in2, tl.where(in3, u, t), zero)
                w3 = tl.where(in3, t, zero)
            else:
                w0, w1, w2 = v, u, t
                w3 = tl.load(values_ptr + 3 * plane + at, mask=ok, other=0.0)
    # A join appends the fastest axis, so lane 2a + b is element [.., a, b] of this nesting.
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK_M, BLOCK_K))


# N changes from call to call: specialised on, 1 and the multiples of 16 would compile anew.
@triton.jit(do_not_specialize=["N"])
def nm_linear_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    values_ptr,
    lanes_ptr,
    bias_ptr,
    y_ptr,
    N,
    M,
    K,
    G,
    C,
    plane,
    stride_xn,
    stride_xk,
    steps,
    each,
    KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    DOT_IN_FP32: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    BLOCK_K: tl.constexpr = 4 * BLOCK_C
    # One grid axis: a second one ends at 65535. Programs next to each other share the tile of x.
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    rows = (tl.program_id(0) % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = (tl.program_id(0) // tiles_m % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // tiles_m // tiles_n
    row_ok = rows < M
    token_ok = tokens < N
    # 64 bits: rows times G and tokens times K exceed 2^31 for large layers and long prompts.
    row_start = rows.to(tl.int64)[:, None] * G
    lane_start = rows.to(tl.int64)[:, None] * C
    token_start = tokens.to(tl.int64)[None, :] * stride_xn
    plane = tl.cast(plane, tl.int64)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(split * each, tl.minimum((split + 1) * each, steps)):
        byte = step * BLOCK_C
        both = tl.load(
            lanes_ptr + lane_start + (byte + tl.arange(0, BLOCK_C))[None, :],
            mask=row_ok[:, None],
            other=0,
        )
        low = (byte // HALF) * (2 * HALF) + byte % HALF
        for half in tl.static_range(2):
            first = low + half * HALF
            groups = first + tl.arange(0, BLOCK_C)
            w = expand(
                both >> (4 * half), row_start + groups[None, :],
                row_ok[:, None] & (groups < G)[None, :], values_ptr, plane, KEPT, BLOCK_M, BLOCK_K,
            )  # fmt: skip
            columns = 4 * first + tl.arange(0, BLOCK_K)
            x = tl.load(
                x_ptr + token_start + columns.to(tl.int64)[:, None] * stride_xk,
                mask=(columns < K)[:, None] & token_ok[None, :],
                other=0.0,
            )
            if DOT_IN_FP32:
                w = w.to(tl.float32)
                x = x.to(tl.float32)
            acc = tl.dot(w, x, acc, input_precision="ieee")

    at = tokens.to(tl.int64)[None, :] * M + rows[:, None]
    ok = row_ok[:, None] & token_ok[None, :]
    if SPLIT:
        tl.store(y_ptr + split.to(tl.int64) * N * M + at, acc, mask=ok)
    else:
        if HAS_BIAS:
            acc += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        y = activate(acc, ACTIVATION)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=ok)


@dataclass(frozen=True)
class Config:
    """Tile sizes (rows of W, tokens, bytes of the lane plane: two groups of four columns each) and
    launch options of one N bucket. `block_n` is 0 where one token takes the vector kernel."""

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


# (largest N of the bucket, config); the last bucket is open. Fixed here, so no call ever tunes.
HALF_CONFIGS = (
    (1, Config(16, 0, 128, 4, 2)),
    (16, Config(64, 16, 32, 4, 3)),
    (32, Config(64, 32, 16, 4, 3)),
    (64, Config(64, 64, 16, 4, 3)),
    (None, Config(128, 128, 16, 8, 2)),
)
# fp32 with IEEE products has no tensor cores: both operand tiles live in registers and are smaller.
FLOAT_CONFIGS = (
    (1, Config(16, 0, 64, 4, 2)),
    (16, Config(32, 16, 8, 4, 3)),
    (64, Config(64, 32, 8, 4, 3)),
    (None, Config(64, 64, 8, 8, 3)),
)


def config_for(tokens: int, dtype: torch.dtype) -> Config:
    """The tile configuration for N = `tokens` and inputs of `dtype`.

    Example:
        >>> config_for(2, torch.float16).block_n
        16
    """
    table = FLOAT_CONFIGS if dtype == torch.float32 else HALF_CONFIGS
    return next(c for limit, c in table if limit is None or tokens <= limit)


# Triton decides when the kernel is defined whether it is compiled or interpreted, and not again.
INTERPRETED = not isinstance(nm_linear_kernel, triton.JITFunction)


def nm_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    activation: str = "none",
    *,
    meta: NmMeta,
) -> torch.Tensor:
    """Linear layer act(x W^T + bias) on a CUDA device, with W read in place from N:M planes.

    Products of float32 are IEEE (no TF32), sums are float32 for every type, and the activation is
    applied before the one rounding to the output's type. Nothing depends on how programs are
    scheduled: equal inputs give equal bits. The packed buffer is taken as validated: a corrupt
    position gives wrong numbers but nothing outside the buffer is read. The first call with a
    buffer makes its lane plane and waits for it; later ones wait for nothing.

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
            bias's type is not x's or its shape is not [M]; `nm_limits` names the device
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
    check_linear(
        "nm.linear.triton", x, packed, bias, out_features, activation,
        shape=(meta.out_features, meta.in_features), dtype=meta.dtype,
        reasons=nm_limits(Problem("linear", "nm", x.device, x.dtype, n=meta.n, m=meta.m)),
        interpreted=INTERPRETED,
    )  # fmt: skip
    count = meta.n * out_features * meta.groups
    positions = section(packed, meta.positions, count, torch.uint8)
    values = section(packed, meta.values, count, meta.dtype)
    tokens = math.prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    lanes = meta.derived.get(
        packed, "lanes", lambda: lane_plane(positions.view(meta.n, out_features, meta.groups))
    )
    x2d = x.reshape(tokens, meta.in_features)
    config = config_for(tokens, x.dtype)
    tiles = triton.cdiv(out_features, config.block_m)
    if config.block_n:
        tiles *= triton.cdiv(tokens, config.block_n)
    steps = triton.cdiv(bytes_read(meta.groups), config.block_c)
    each = steps_per_split(steps, tiles, meta.sms)
    splits = max(triton.cdiv(steps, each), 1)
    out = y
    if splits > 1:
        out = torch.empty((splits, tokens, out_features), dtype=torch.float32, device=x.device)
    shared = {
        "KEPT": meta.n,
        "HAS_BIAS": bias is not None and splits == 1,
        "ACTIVATION": activation if splits == 1 else "none",
        "SPLIT": splits > 1,
        "HALF": HALF,
        "BLOCK_M": config.block_m,
        "BLOCK_C": config.block_c,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    pointers = x2d, values, lanes, x if bias is None else bias.contiguous(), out
    sizes = out_features, meta.in_features, meta.groups, lanes.shape[1], out_features * meta.groups
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        if config.block_n:
            nm_linear_kernel[(tiles * splits,)](
                *pointers, tokens, *sizes, x2d.stride(0), x2d.stride(1), steps, each,
                # The interpreter's dot is NumPy's matmul, which takes bfloat16's bits for integers.
                DOT_IN_FP32=INTERPRETED, BLOCK_N=config.block_n, **shared,
            )  # fmt: skip
        else:
            nm_vector_kernel[(tiles * splits,)](
                *pointers, *sizes, x2d.stride(1), steps, each, **shared
            )
        if splits > 1:
            split_sum(out, bias, y, activation)
    return y
