"""Block-sparse linear in Triton: y[N, M] = act(x[N, K] @ W[M, K]^T + bias), W in square blocks.

A program owns a part of a block row and a tile of tokens and walks the stored blocks of that row:
it loads a part of a block and the inputs that its block column names, and feeds `tl.dot`, sums in
float32. For few tokens W is the left operand, so that they pad the narrow side of the matrix
instruction, a block row is shared by several programs of 16 rows each, and where rows are long
their blocks are split too, with partial sums in float32 added in a fixed order
(`split_sum`). For many tokens x is the left operand: the wide matrix instructions of Hopper
want 64 rows there, which blocks of 16 and 32 do not have.

x may have any strides, y is contiguous and aliases nothing. The scheme, one program a block row
over the stored blocks only, follows Gray, Radford and Kingma, "GPU Kernels for Block-Sparse
Weights" (2017).
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
from sparseinfer.kernels.triton.arguments import check_linear
from sparseinfer.kernels.triton.bsr_grid import BsrMeta, bsr_limits
from sparseinfer.kernels.triton.split_sum import split_sum, steps_per_split


# N changes from call to call: specialised on, 1 and the multiples of 16 would compile anew.
@triton.jit(do_not_specialize=["N"])
def bsr_linear_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    rows_ptr,
    columns_ptr,
    values_ptr,
    bias_ptr,
    y_ptr,
    N,
    M,
    K,
    splits,
    stride_xn,
    stride_xk,
    B: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    W_LEFT: tl.constexpr,
    PARTIAL: tl.constexpr,
    DOT_IN_FP32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    PARTS: tl.constexpr = B // BLOCK_M
    STEPS: tl.constexpr = B // BLOCK_K
    # One grid axis: a second one ends at 65535. Programs next to each other share the tile of x.
    tiles_m = tl.cdiv(M, B) * PARTS
    tile = tl.program_id(0) % tiles_m
    split = (tl.program_id(0) // tiles_m) % splits
    row_block = tile // PARTS
    in_block = (tile % PARTS) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = row_block * B + in_block
    tokens = (tl.program_id(0) // tiles_m // splits) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    # 64 bits: tokens times K and blocks times B B exceed 2^31 for long prompts and large layers.
    token_start = tokens.to(tl.int64) * stride_xn
    token_ok = tokens < N

    row_first = tl.load(rows_ptr + row_block)
    count = tl.load(rows_ptr + row_block + 1) - row_first
    first = row_first + (count.to(tl.int64) * split // splits).to(tl.int32)
    last = row_first + (count.to(tl.int64) * (split + 1) // splits).to(tl.int32)

    if W_LEFT:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    # Blocks and the steps within them are one loop, so that loads of the next block overlap too.
    for at in range(0, (last - first) * STEPS):
        block = first + at // STEPS
        k = (at % STEPS) * BLOCK_K + lanes
        columns = tl.load(columns_ptr + block) * B + k
        start = values_ptr + block.to(tl.int64) * (B * B)
        token_at = columns.to(tl.int64) * stride_xk
        if W_LEFT:
            w = tl.load(start + in_block[:, None] * B + k[None, :])
            x = tl.load(
                x_ptr + token_at[:, None] + token_start[None, :],
                mask=(columns < K)[:, None] & token_ok[None, :],
                other=0.0,
            )
            if DOT_IN_FP32:
                w = w.to(tl.float32)
                x = x.to(tl.float32)
            acc = tl.dot(w, x, acc, input_precision="ieee")
        else:
            w = tl.load(start + in_block[None, :] * B + k[:, None])
            x = tl.load(
                x_ptr + token_start[:, None] + token_at[None, :],
                mask=token_ok[:, None] & (columns < K)[None, :],
                other=0.0,
            )
            if DOT_IN_FP32:
                w = w.to(tl.float32)
                x = x.to(tl.float32)
            acc = tl.dot(x, w, acc, input_precision="ieee")

    if W_LEFT:
        acc = tl.trans(acc)
    row_ok = rows < M
    if PARTIAL:
        y = acc
        y_ptr += split.to(tl.int64) * N * M
    else:
        if HAS_BIAS:
            acc += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)[None, :]
        y = activate(acc, ACTIVATION)
    tl.store(
        y_ptr + tokens.to(tl.int64)[:, None] * M + rows[None, :],
        y.to(y_ptr.dtype.element_ty),
        mask=token_ok[:, None] & row_ok[None, :],
    )


@dataclass(frozen=True)
class Config:
    """Tile sizes (rows of W, tokens, inputs; at most a block's edge) and launch options."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    w_left: bool


# (largest N of the bucket, config); the last bucket is open. Fixed here, so no call ever tunes.
HALF_CONFIGS = (
    (16, Config(16, 16, 64, 2, 5, True)),
    (32, Config(32, 32, 64, 4, 4, True)),
    (64, Config(64, 64, 64, 4, 4, True)),
    (None, Config(128, 128, 64, 8, 3, False)),
)
# fp32 with IEEE products has no tensor cores: both operand tiles live in registers and are smaller.
FLOAT_CONFIGS = (
    (16, Config(16, 16, 32, 2, 3, True)),
    (64, Config(32, 32, 32, 4, 3, True)),
    (None, Config(64, 64, 32, 8, 3, False)),
)


def config_for(tokens: int, block: int, dtype: torch.dtype) -> Config:
    """The tile configuration for N = `tokens`, blocks of edge `block` and inputs of `dtype`.

    Example:
        >>> config_for(1, 128, torch.float16).block_m, config_for(999, 32, torch.float16).block_m
        (16, 32)
    """
    table = FLOAT_CONFIGS if dtype == torch.float32 else HALF_CONFIGS
    found = next(c for limit, c in table if limit is None or tokens <= limit)
    narrow = block <= 32
    return Config(
        min(found.block_m, block),
        found.block_n,
        min(found.block_k, block),
        min(found.num_warps, 4) if narrow else found.num_warps,
        found.num_stages,
        found.w_left,
    )


def splits_for(meta: BsrMeta, config: Config, tokens: int) -> int:
    """Programs that share the blocks of a row: more than one where few programs would wait.

    Example:
        >>> meta = BsrMeta(1024, 28672, (1, 1), 1, 64, 720, torch.float16, 128, 256, 384)
        >>> splits_for(meta, config_for(1, 64, torch.float16), 1)
        4
    """
    tiles = meta.row_blocks * (meta.block // config.block_m) * triton.cdiv(tokens, config.block_n)
    steps = max(meta.blocks // meta.row_blocks, 1)
    return triton.cdiv(steps, steps_per_split(steps, tiles, meta.sms))


# Triton decides when the kernel is defined whether it is compiled or interpreted, and not again.
INTERPRETED = not isinstance(bsr_linear_kernel, triton.JITFunction)


def bsr_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    activation: str = "none",
    *,
    meta: BsrMeta,
) -> torch.Tensor:
    """Linear layer act(x W^T + bias) on a CUDA device, with W read in place from its blocks.

    Products of float32 are IEEE (no TF32), sums are float32 for every type, and the activation is
    applied before the one rounding to the output's type. The result is the same bits in every run.
    The packed buffer is taken as validated: its indices are followed.

    Args:
        x: input [..., K] of the packed values' type, any strides.
        packed: the packed buffer, contiguous uint8 [bytes], validated (`open_packed`).
        bias: [M] of x's type, or None.
        out_features: M.
        activation: none, relu, relu6, gelu, gelu_tanh, silu, sigmoid or tanh.
        meta: what `packed` holds; `BsrMeta.from_info(formats.info(packed))`.

    Returns:
        y [..., M], contiguous, of x's type.

    Raises:
        RuntimeError: see `sparseinfer.kernels.triton.arguments.check_linear`.
        ValueError: the activation is unknown, or `packed` is not a contiguous 1-D uint8 buffer that
            holds the sections `meta` describes, aligned to their type.

    Source: Gray, Radford and Kingma, "GPU Kernels for Block-Sparse Weights", 2017.

    Example (needs a GPU, or TRITON_INTERPRET=1 with device = "cpu"):
        >>> from sparseinfer import formats
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> packed = formats.pack(2 * torch.eye(20), "bsr", block=16)
        >>> meta = BsrMeta.from_info(formats.info(packed))
        >>> y = bsr_linear(torch.ones(1, 20, device=device), packed.to(device), None, 20, meta=meta)
        >>> y.sum().item()
        40.0
    """
    check_linear(
        "bsr.linear.triton",
        x,
        packed,
        bias,
        out_features,
        activation,
        shape=(meta.out_features, meta.in_features),
        dtype=meta.dtype,
        reasons=bsr_limits(Problem("linear", "bsr", x.device, x.dtype)),
        interpreted=INTERPRETED,
    )
    rows, columns, values = meta.sections(packed)
    tokens = math.prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x2d = x.reshape(tokens, meta.in_features)
    config = config_for(tokens, meta.block, x.dtype)
    splits = splits_for(meta, config, tokens)
    target = y
    if splits > 1:
        target = torch.empty((splits, *y.shape), dtype=torch.float32, device=x.device)
    tiles = meta.row_blocks * (meta.block // config.block_m)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        bsr_linear_kernel[(tiles * splits * triton.cdiv(tokens, config.block_n),)](
            x2d,
            rows,
            columns,
            values,
            x if bias is None else bias.contiguous(),
            target,
            tokens,
            out_features,
            meta.in_features,
            splits,
            x2d.stride(0),
            x2d.stride(1),
            B=meta.block,
            HAS_BIAS=bias is not None,
            ACTIVATION=activation,
            W_LEFT=config.w_left,
            PARTIAL=splits > 1,
            # The interpreter's dot is NumPy's matmul, which takes bfloat16's bits for integers.
            DOT_IN_FP32=INTERPRETED,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if splits > 1:
            split_sum(target, bias, y, activation)
    return y
