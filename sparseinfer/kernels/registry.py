"""The one view of every kernel: native (csrc/kernels/registry.inc), CUDA C++ and Triton rows.

Selection, conformance tests, benchmarks, `sparseinfer doctor` and the README's support table all
iterate `rows()`. Nothing registers itself by being imported.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

from sparseinfer import native
from sparseinfer.kernels import cusparselt, triton
from sparseinfer.kernels.cuda import nm24_linear
from sparseinfer.kernels.row import PAIRS, Problem, Row
from sparseinfer.kernels.triton.bsr_grid import BsrMeta, bsr_limits
from sparseinfer.kernels.triton.csr_rows import CsrMeta, csr_kept, csr_limits
from sparseinfer.kernels.triton.nm_planes import NmMeta, nm_kept, nm_limits

__all__ = ["EDGES", "PAIRS", "Problem", "Row", "bucket_of", "no_row", "rows", "select"]

EDGES = (1, 16, 64, 255)
"""The largest N of every bucket but the last, which is open. A row's limits lie on these edges, so
that which row runs is the same everywhere in a bucket."""


def bucket_of(tokens: int) -> int:
    """The index of the bucket of N = `tokens`.

    Example:
        >>> [bucket_of(n) for n in (0, 1, 2, 64, 65, 256, 4096)]
        [0, 0, 1, 2, 3, 4, 4]
    """
    return bisect_left(EDGES, tokens)


CUDA_ROWS: tuple[Row, ...] = (nm24_linear.ROW,)
"""The CUDA C++ kernels (csrc/cuda), best first; disabled until a GPU has proven them."""

TRITON_ROWS: tuple[Row, ...] = (
    cusparselt.ROW,
    triton.row_of("nm_linear", NmMeta.from_info, nm_limits, keeps=nm_kept),
    triton.row_of("csr_linear", CsrMeta.from_info, csr_limits, mixed=True, keeps=csr_kept),
    triton.row_of("bsr_linear", BsrMeta.from_info, bsr_limits),
    triton.row_of("bsr_conv", BsrMeta.from_info, bsr_limits),
)
"""The GPU kernels, best first: torch's for prompts, and Triton's, one file each."""


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every kernel row, best first: native rows, then CUDA C++ and Triton rows.

    Example:
        >>> "panel.linear.scalar" in [row.name for row in rows()]
        True
    """
    on_host = tuple(
        Row(
            row["name"],
            row["format"],
            row["op"],
            tuple(row["x_types"]),
            row["isa"],
            "cpu",
            native_id=index,
            weight_types=(PAIRS,) if row["dtype"] == "bfloat16" else tuple(row["weight_types"]),
        )
        for index, row in enumerate(native.rows())
    )
    return on_host + CUDA_ROWS + TRITON_ROWS


@lru_cache(maxsize=1024)
def select(problem: Problem, device_only: bool = False) -> Row:
    """The best row that runs `problem` here; `device_only` leaves the native ones out.

    Raises:
        RuntimeError: no row can; the message lists every row with its reasons.

    Example:
        >>> select(Problem("linear", "panel", M=64, K=64, N=1)).format
        'panel'
    """
    for row in TRITON_ROWS if device_only else rows():
        if not row.unsupported_reasons(problem):
            return row
    raise no_row(problem)


def no_row(problem: Problem) -> RuntimeError:
    """The error that says why no row runs `problem`: every row with its reasons.

    Example:
        >>> import torch
        >>> str(no_row(Problem("linear", "panel", torch.device("cuda")))).split(",")[0]
        'expected a kernel for linear in format panel on cuda with torch.float32'
    """
    device = problem.device.type
    there = sorted({row.format for row in rows() if (row.op, row.device) == (problem.op, device)})
    if problem.format in there:
        advice = "try another shape or type"
    elif there:
        move = ".cuda()" if device == "cuda" else f".to({device!r})"
        advice = (
            f"try converting after the move, convert_to_sparse(model{move}): "
            f"{', '.join(there)} run there"
        )
    else:
        advice = "try the dense layer, module.to_dense()"
    absent = triton.NO_KERNEL.get((problem.format, problem.op)) if device == "cuda" else None
    why = f": {absent}" if absent else ""
    refusals = (f"  {row.name}: {'; '.join(row.unsupported_reasons(problem))}" for row in rows())
    return RuntimeError(
        f"expected a kernel for {problem.op} in format {problem.format} on {device} "
        f"with {problem.dtype}, got none{why}; {advice}. Rows:\n" + "\n".join(refusals)
    )
