"""Sparse-row linear in Triton: y[N, M] = act(x[N, K] @ W[M, K]^T + bias), W's non-zeros only.

W is read as `csr_rows.py` lays it out, once for a buffer: entries of two-byte columns and values in
the type of x, rows sorted by length. A program takes the same stretch of a few rows of like length
and gathers x, which is small and stays in the caches; for more than one token x is first copied
column by column, so that one gather takes all tokens of a column. Sums are float32 in registers,
one for every entry of the tile, and meet at the end. A slice of rows longer than an even share is
cut; a second kernel then adds its pieces in their order. No atomics: equal inputs give equal bits.

For 80% zeros and more, and few tokens: every non-zero costs a gather for each token. x may have any
strides, y is contiguous and aliases nothing.
"""

from __future__ import annotations

import contextlib
import math

import torch
import triton
import triton.language as tl

from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton.activate import activate
from sparseinfer.kernels.triton.arguments import check_linear, section
from sparseinfer.kernels.triton.csr_rows import (
    ALIGN,
    SLICE_ROWS,
    CsrMeta,
    CsrRows,
    csr_limits,
    csr_rows,
)


@triton.jit
def finish_rows(  # type: ignore[no-untyped-def]
    sums,
    slice_id,
    tokens,
    order_ptr,
    bias_ptr,
    y_ptr,
    N,
    M,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Stores the finished sums [ROWS, tokens] of a slice at the rows that they belong to."""
    rows = tl.load(order_ptr + slice_id * ROWS + tl.arange(0, ROWS))
    row_ok = rows < M
    if HAS_BIAS:
        sums += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    y = activate(sums, ACTIVATION)
    tl.store(
        y_ptr + tokens.to(tl.int64)[None, :] * M + rows[:, None],
        y.to(y_ptr.dtype.element_ty),
        mask=row_ok[:, None] & (tokens < N)[None, :],
    )


@triton.jit(do_not_specialize=["N", "blocks", "units"])
def csr_linear_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    columns_ptr,
    values_ptr,
    order_ptr,
    starts_ptr,
    lengths_ptr,
    units_ptr,
    bias_ptr,
    partials_ptr,
    y_ptr,
    N,
    M,
    blocks,
    units,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NARROW: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    unit = tl.program_id(0) % units
    block = tl.program_id(0) // units
    slice_id = tl.load(units_ptr + 4 * unit)
    first = tl.load(units_ptr + 4 * unit + 1)
    last = tl.load(units_ptr + 4 * unit + 2)
    pieces = tl.load(units_ptr + 4 * unit + 3)
    lanes = slice_id * ROWS + tl.arange(0, ROWS)
    # 64 bits: entries exceed 2^31 in the largest layers. Multiples of ALIGN, so loads are vectors.
    start = tl.load(starts_ptr + lanes).to(tl.int64) * ALIGN
    end = tl.minimum(tl.load(lengths_ptr + lanes), last) * ALIGN
    tokens = block * BLOCK_N + tl.arange(0, BLOCK_N)

    acc = tl.zeros((ROWS, BLOCK_E, BLOCK_N), dtype=tl.float32)
    for e0 in range(first * ALIGN, last * ALIGN, BLOCK_E):
        entries = e0 + tl.arange(0, BLOCK_E)
        ok = entries[None, :] < end[:, None]
        at = start[:, None] + entries[None, :]
        column = tl.load(columns_ptr + at, mask=ok, other=0).to(tl.int32)
        if NARROW:
            column = column & 0xFFFF
        v = tl.load(values_ptr + at, mask=ok, other=0.0)
        # What fills a row up is zero and takes no x: 0 times an infinite x would be NaN.
        x = tl.load(
            x_ptr + column.to(tl.int64)[:, :, None] * (blocks * BLOCK_N) + tokens[None, None, :],
            mask=(v != 0)[:, :, None],
            other=0.0,
        )
        acc += v.to(tl.float32)[:, :, None] * x.to(tl.float32)

    sums = tl.sum(acc, axis=1)
    if pieces > 1:
        cell = tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        # Cut slices have the first units: a unit's number is its place among the partial sums.
        tl.store(
            partials_ptr + (unit.to(tl.int64) * blocks + block) * (ROWS * BLOCK_N) + cell, sums
        )
    else:
        finish_rows(
            sums, slice_id, tokens, order_ptr, bias_ptr, y_ptr, N, M, HAS_BIAS, ACTIVATION, ROWS
        )


@triton.jit(do_not_specialize=["N", "blocks"])
def csr_cuts_kernel(  # type: ignore[no-untyped-def]
    partials_ptr,
    cuts_ptr,
    order_ptr,
    bias_ptr,
    y_ptr,
    N,
    M,
    blocks,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    slice_id = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first = tl.load(cuts_ptr + 2 * slice_id)
    pieces = tl.load(cuts_ptr + 2 * slice_id + 1)
    cell = tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    pointers = partials_ptr + (first.to(tl.int64) * blocks + block) * (ROWS * BLOCK_N) + cell
    sums = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
    for _ in range(pieces):
        sums += tl.load(pointers)
        pointers += blocks * (ROWS * BLOCK_N)
    tokens = block * BLOCK_N + tl.arange(0, BLOCK_N)
    finish_rows(
        sums, slice_id, tokens, order_ptr, bias_ptr, y_ptr, N, M, HAS_BIAS, ACTIVATION, ROWS
    )


# Tokens of a block: the entries of a row that a program takes at once.
BLOCK_ENTRIES = {1: 128, 2: 64, 4: 64, 8: 64, 16: 32}
MOST_TOKENS = 16
NUM_WARPS = 4

# Triton decides when the kernel is defined whether it is compiled or interpreted, and not again.
INTERPRETED = not isinstance(csr_linear_kernel, triton.JITFunction)


def csr_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    activation: str = "none",
    *,
    meta: CsrMeta,
) -> torch.Tensor:
    """Linear layer act(x W^T + bias) on a CUDA device, from the non-zeros of a csr weight.

    Values are rounded to the type of x once, sums are float32, and the activation is applied before
    the one rounding to the output's type. The packed buffer is taken as validated. The first call
    with a buffer and a type lays the rows out (`csr_rows`) and waits for it; later ones wait for
    nothing.

    Args:
        x: input [..., K] in float32, float16 or bfloat16, any strides.
        packed: the packed buffer, contiguous uint8 [bytes].
        bias: [M] of x's type, or None.
        out_features: M.
        activation: none, relu, relu6, gelu, gelu_tanh, silu, sigmoid or tanh.
        meta: where the sections lie in `packed`; `CsrMeta.from_info(formats.info(packed))`.

    Returns:
        y [..., M], contiguous, of x's type.

    Raises:
        RuntimeError: the tensors are on different devices; x is 0-dimensional or its last dimension
            is not K; `out_features` is not the packed M; the bias's type is not x's or its shape is
            not [M]; `csr_limits` names the device or the type; TRITON_INTERPRET was set after the
            first use.
        ValueError: the activation is unknown, or `packed` is not a contiguous 1-D uint8 buffer that
            holds the sections `meta` describes, aligned to their type.

    Source: SELL-C-sigma (Kreutzer et al., 2014); merge-based SpMV (Merrill and Garland, 2016).

    Example (needs a GPU, or TRITON_INTERPRET=1 with device = "cpu"):
        >>> from sparseinfer import formats
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> packed = formats.pack(torch.tensor([[0.0, 2.0, 0.0]]), "csr")
        >>> meta = CsrMeta.from_info(formats.info(packed))
        >>> x = torch.tensor([[1.0, 10.0, 100.0]], device=device)
        >>> csr_linear(x, packed.to(device), None, 1, meta=meta).item()
        20.0
    """
    check_linear(
        "csr.linear.triton", x, packed, bias, out_features, activation,
        shape=(meta.out_features, meta.in_features), dtype=x.dtype,
        reasons=csr_limits(Problem("linear", "csr", x.device, x.dtype)), interpreted=INTERPRETED,
    )  # fmt: skip
    starts = section(packed, meta.rows, meta.out_features + 1, torch.int32)
    columns = section(packed, meta.columns, meta.nnz, torch.int32)
    values = section(packed, meta.values, meta.nnz, torch.float32)
    tokens = math.prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    made: CsrRows = meta.derived.get(
        packed, x.dtype,
        lambda: csr_rows(starts, columns, values, meta.in_features, x.dtype, meta.sms),
    )  # fmt: skip
    block = min(triton.next_power_of_2(tokens), MOST_TOKENS)
    blocks = triton.cdiv(tokens, block)
    by_column = x.reshape(tokens, meta.in_features).t()
    if tokens == 1:
        by_column = by_column.contiguous()
    else:
        padded = x.new_empty(meta.in_features, blocks * block)
        padded[:, :tokens] = by_column
        by_column = padded
    partials = torch.empty(
        (max(made.cut_units, 1) * blocks, SLICE_ROWS, block), dtype=torch.float32, device=x.device
    )
    fused = {"HAS_BIAS": bias is not None, "ACTIVATION": activation, "ROWS": SLICE_ROWS}
    fused |= {"BLOCK_N": block, "num_warps": NUM_WARPS}
    bias = x if bias is None else bias.contiguous()
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        csr_linear_kernel[(len(made.units) * blocks,)](
            by_column, made.columns, made.values, made.order, made.starts, made.lengths, made.units,
            bias, partials, y, tokens, out_features, blocks, len(made.units),
            NARROW=made.columns.dtype == torch.int16, ALIGN=ALIGN, BLOCK_E=BLOCK_ENTRIES[block],
            **fused,
        )  # fmt: skip
        if made.cut_units:
            csr_cuts_kernel[(len(made.cuts) * blocks,)](
                partials, made.cuts, made.order, bias, y, tokens, out_features, blocks, **fused
            )
    return y
