"""N:4 times one token in Triton: y[M] = act(W[M, K] x[K] + bias), no matrix instruction.

Where a decode has one token, nothing is expanded: the four x of a group lie in registers, and the
lane plane (`nm_lanes.py`) selects for each kept weight the one that it multiplies. That is about
four instructions for each column of a 2:4 weight, what a GPU of the Hopper class can spend at the
pace of its memory. y is float32 partial sums, or the finished output where K is not split. x may
have any stride and aliases nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparseinfer.kernels.triton.activate import activate


@triton.jit
def add_groups(  # type: ignore[no-untyped-def]
    acc,
    lanes,
    at,
    ok,
    x_ptr,
    column,
    K,
    stride_x,
    values_ptr,
    plane,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """acc plus the products of a tile of groups, whose first column is `column`."""
    columns = column + tl.arange(0, 4 * BLOCK)
    x = tl.load(x_ptr + columns.to(tl.int64) * stride_x, mask=columns < K, other=0.0)
    # A split undoes a join: lane 2a + b of a group is element [.., a, b].
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (BLOCK, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    x0, x1, x2, x3 = x0[None, :], x1[None, :], x2[None, :], x3[None, :]
    in0 = (lanes & 1) != 0
    in1 = (lanes & 2) != 0
    in2 = (lanes & 4) != 0
    in3 = (lanes & 8) != 0
    v = tl.load(values_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if KEPT == 4:
        acc += v * x0
    elif KEPT == 3:
        acc += v * tl.where(in0, x0, x1)
    elif KEPT == 2:
        acc += v * tl.where(in0, x0, tl.where(in1, x1, x2))
    else:
        acc += v * tl.where(in0, x0, tl.where(in1, x1, tl.where(in2, x2, x3)))
    if KEPT > 1:
        v = tl.load(values_ptr + plane + at, mask=ok, other=0.0).to(tl.float32)
        if KEPT == 4:
            acc += v * x1
        elif KEPT == 3:
            acc += v * tl.where(in2 & in3, x2, x1)
        else:
            acc += v * tl.where(in3, x3, tl.where(in2, x2, x1))
    if KEPT > 2:
        v = tl.load(values_ptr + 2 * plane + at, mask=ok, other=0.0).to(tl.float32)
        if KEPT == 4:
            acc += v * x2
        else:
            acc += v * tl.where(in3, x3, x2)
    if KEPT == 4:
        v = tl.load(values_ptr + 3 * plane + at, mask=ok, other=0.0).to(tl.float32)
        acc += v * x3
    return acc


@triton.jit
def nm_vector_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    values_ptr,
    lanes_ptr,
    bias_ptr,
    y_ptr,
    M,
    K,
    G,
    C,
    plane,
    stride_x,
    steps,
    each,
    KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    rows = (tl.program_id(0) % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(0) // tiles_m
    row_ok = rows < M
    # 64 bits: rows times G and planes times M G exceed 2^31 for large layers.
    row_start = rows.to(tl.int64)[:, None] * G
    lane_start = rows.to(tl.int64)[:, None] * C
    plane = tl.cast(plane, tl.int64)

    acc = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
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
            acc = add_groups(
                acc, both >> (4 * half), row_start + groups[None, :],
                row_ok[:, None] & (groups < G)[None, :], x_ptr, 4 * first, K, stride_x,
                values_ptr, plane, KEPT, BLOCK_C,
            )  # fmt: skip

    y = tl.sum(acc, axis=1)
    if SPLIT:
        tl.store(y_ptr + split.to(tl.int64) * M + rows, y, mask=row_ok)
    else:
        if HAS_BIAS:
            y += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
        y = activate(y, ACTIVATION)
        tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=row_ok)
