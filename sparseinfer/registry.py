"""The one view of every kernel: the native table (csrc/kernels/registry.inc) and the Triton rows.

Selection, conformance tests, benchmarks, `sparseinfer doctor` and the README's support table all
iterate `rows()`. Nothing registers itself by being imported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from sparseinfer import _C, cusparselt, triton

__all__ = ["Problem", "Row", "no_row", "rows", "select"]


@dataclass(frozen=True)
class Problem:
    """What a kernel is asked to compute.

    `op` is `linear` or `conv`; `format` is the packed format; M, K and N are output rows, input
    columns of one group, and tokens or pixels; `n`:`m` is the pattern of an nm weight.

    Example:
        >>> Problem("linear", "panel", M=64, K=64, N=1).dtype
        torch.float32
    """

    op: str
    format: str
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    M: int = 1
    K: int = 1
    N: int = 1
    groups: int = 1
    n: int = 2
    m: int = 4


@dataclass(frozen=True)
class Row:
    """One kernel: the format it reads, the operation, and where it runs.

    `native_id` is the row's index in the native table, and None for a Triton kernel.
    """

    name: str
    format: str
    op: str
    dtype: str
    isa: str
    device: str
    native_id: int | None = None

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        """Why this row cannot run `problem` on this machine; empty when it can.

        Example:
            >>> rows()[0].unsupported_reasons(Problem("pool", "panel"))[0].split(";")[0]
            'expected op pool, got linear'
        """
        reasons = []
        if problem.op != self.op:
            reasons.append(f"expected op {problem.op}, got {self.op}; try another row")
        if problem.format != self.format:
            reasons.append(f"expected format {problem.format}, got {self.format}; try another row")
        if self.isa == "cusparselt":
            return reasons + cusparselt.unsupported_reasons(
                problem.device, problem.dtype,
                M=problem.M, K=problem.K, N=problem.N, n=problem.n, m=problem.m,
            )  # fmt: skip
        if self.native_id is None and self.format == "bsr":
            return reasons + triton.block_reasons(
                problem.device, problem.dtype, groups=problem.groups
            )
        if self.native_id is None and self.format == "csr":
            return reasons + triton.csr_reasons(problem.device, problem.dtype)
        if self.native_id is None:
            reasons += triton.unsupported_reasons(
                problem.device, problem.dtype, n=problem.n, m=problem.m
            )
            return reasons
        if problem.device.type != "cpu":
            reasons.append(f"expected a CPU tensor, got {problem.device.type}; try model.cpu()")
        if problem.dtype is not torch.float32:
            got = str(problem.dtype).removeprefix("torch.")
            reasons.append(f"expected {self.dtype}, got {got}; try x.float()")
        return reasons + list(_native_reasons()[self.native_id])

    def machine_reasons(self) -> list[str]:
        """Why this row can run nothing at all on this machine; empty when it can run something."""
        problem = Problem(self.op, self.format, device=torch.device(self.device))
        if self.isa == "cusparselt":
            problem = replace(problem, dtype=torch.float16, M=16, K=16, N=cusparselt.MIN_TOKENS)
        return self.unsupported_reasons(problem)


TRITON_ROWS: tuple[Row, ...] = (
    Row(
        "nm.linear.triton",
        "nm",
        "linear",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
    ),
    Row(
        "nm.linear.cusparselt",
        "nm",
        "linear",
        "float16, bfloat16",
        isa="cusparselt",
        device="cuda",
    ),
    Row(
        "csr.linear.triton",
        "csr",
        "linear",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
    ),
    Row(
        "bsr.linear.triton",
        "bsr",
        "linear",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
    ),
    Row(
        "bsr.conv.triton",
        "bsr",
        "conv",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
    ),
)
"""The GPU kernels, best first: Triton's (one file each in sparseinfer/triton), and torch's."""


@lru_cache(maxsize=1)
def _native_reasons() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row["reasons"]) for row in _C.rows())


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every kernel row, best first: native rows, then Triton rows.

    Example:
        >>> "panel.linear.scalar" in [row.name for row in rows()]
        True
    """
    native = tuple(
        Row(row["name"], row["format"], row["op"], row["dtype"], row["isa"], "cpu", native_id=index)
        for index, row in enumerate(_C.rows())
    )
    return native + TRITON_ROWS


@lru_cache(maxsize=1024)
def select(problem: Problem) -> Row:
    """The best row that runs `problem` here.

    Raises:
        RuntimeError: no row can; the message lists every row with its reasons.

    Example:
        >>> select(Problem("linear", "panel", M=64, K=64, N=1)).format
        'panel'
    """
    for row in rows():
        if not row.unsupported_reasons(problem):
            return row
    raise no_row(problem)


def no_row(problem: Problem) -> RuntimeError:
    """The error that says why no row runs `problem`: every row with its reasons.

    Example:
        >>> str(no_row(Problem("linear", "panel", torch.device("cuda")))).split(",")[0]
        'expected a kernel for linear in format panel on cuda with torch.float32'
    """
    absent = triton.NO_KERNEL.get((problem.format, problem.op))
    why = f": {absent}" if absent and problem.device.type == "cuda" else ""
    refusals = (f"  {row.name}: {'; '.join(row.unsupported_reasons(problem))}" for row in rows())
    return RuntimeError(
        f"expected a kernel for {problem.op} in format {problem.format} on {problem.device.type} "
        f"with {problem.dtype}, got none{why}; try another format. Rows:\n" + "\n".join(refusals)
    )
