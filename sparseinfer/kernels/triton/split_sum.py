"""The second half of a split-K kernel: y = act(sum over splits of partials + bias).

The partials are float32 [splits][N][M]; one element of y is summed by one lane in the order of the
splits, so a result is the same bits in every run. y is contiguous [N][M] and aliases nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparseinfer.kernels.triton.activate import activate

BLOCK = 256
PROGRAMS_PER_SM = 2


# N M changes with the tokens: specialised on, its multiples of 16 would compile anew.
@triton.jit(do_not_specialize=["count", "splits"])
def split_sum_kernel(  # type: ignore[no-untyped-def]
    partials_ptr,
    bias_ptr,
    y_ptr,
    count,
    M,
    splits,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < count
    y = tl.zeros((BLOCK,), dtype=tl.float32)
    pointers = partials_ptr + at
    for _ in range(splits):
        y += tl.load(pointers, mask=ok, other=0.0)
        pointers += count
    if HAS_BIAS:
        y += tl.load(bias_ptr + at % M, mask=ok, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, activate(y, ACTIVATION).to(y_ptr.dtype.element_ty), mask=ok)


def split_sum(
    partials: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, activation: str
) -> None:
    """Write act(partials.sum(0) + bias) to y [..., M], contiguous, for partials [splits][N][M].

    Example (needs a GPU, or TRITON_INTERPRET=1 with device = "cpu"):
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> y = torch.empty(1, 2, device=device)
        >>> split_sum(torch.ones(3, 1, 2, device=device), None, y, "none")
        >>> y.tolist()
        [[3.0, 3.0]]
    """
    split_sum_kernel[(triton.cdiv(y.numel(), BLOCK),)](
        partials,
        partials if bias is None else bias.contiguous(),
        y,
        y.numel(),
        y.shape[-1],
        partials.shape[0],
        HAS_BIAS=bias is not None,
        ACTIVATION=activation,
        BLOCK=BLOCK,
        num_warps=4,
    )


def steps_per_split(steps: int, tiles: int, sms: int) -> int:
    """How many of the `steps` over K one program takes, where `tiles` programs would take all.

    Enough programs for two on every one of `sms` multiprocessors, and no more: a split pays for its
    partial sums.

    Example:
        >>> steps_per_split(steps=32, tiles=64, sms=132), steps_per_split(32, 1024, 132)
        (8, 32)
    """
    splits = max(PROGRAMS_PER_SM * sms // tiles, 1)
    return max(-(-steps // splits), 1)
