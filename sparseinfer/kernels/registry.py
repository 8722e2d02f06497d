"""The one view of every kernel: native (csrc/kernels/registry.inc), CUDA C++ and Triton rows.

Selection, conformance tests, benchmarks, `sparseinfer doctor` and the README's support table all
iterate `rows()`. Nothing registers itself by being imported.
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from sparseinfer import native
from sparseinfer.kernels import cuda, cusparselt, triton
from sparseinfer.kernels.triton.bsr_grid import BsrMeta
from sparseinfer.kernels.triton.csr_rows import CsrMeta

__all__ = ["EDGES", "Problem", "Row", "bucket_of", "no_row", "rows", "select"]

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


@dataclass(frozen=True)
class Problem:
    """What a kernel is asked to compute.

    `op` is `linear` or `conv`; `format` is the packed format; M, K and N are output rows, input
    columns of one group, and tokens or pixels; `n`:`m` is the pattern of an nm weight; `pairs` says
    that a panel weight is packed in pairs of bfloat16.

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
    pairs: bool = False


@dataclass(frozen=True)
class Row:
    """One kernel: the format it reads, the operation, and where it runs.

    `native_id` is the row's index in the native table, and None for a device kernel. Of that one
    `kernel` is "module:function", imported at its first use and called as
    `function(x, packed, bias, out_features, activation, meta=...)` or, for a convolution,
    `function(x, packed, bias, out_channels, kernel_size, stride, padding, dilation, groups,
    padding_mode, activation, meta=...)`; `meta` reads its description of the buffer from
    `formats.info` and the device's multiprocessors, `refuses` says why a problem is none for it
    without importing the kernel, and it takes `least` to `most` tokens or pixels (None: any
    number). `mixed` tells that it takes float16 and bfloat16 inputs beside float32 values itself.
    `prepare(packed, meta, tokens, biased)` finds out, where a layer is converted, what its calls of
    N = `tokens` shall know.
    """

    name: str
    format: str
    op: str
    dtype: str
    isa: str
    device: str
    native_id: int | None = None
    kernel: str = ""
    meta: Callable[[Mapping[str, Any], int], Any] | None = None
    refuses: Callable[[Problem], list[str]] | None = None
    least: int = 0
    most: int | None = None
    mixed: bool = False
    prepare: Callable[[torch.Tensor, Any, int, bool], object] | None = None

    @property
    def off(self) -> bool:
        """Whether it runs nowhere yet: it is listed for its reason alone.

        Example:
            >>> [row.name for row in rows() if row.off]
            ['nm.linear.mma_sp']
        """
        return self.native_id is None and not self.kernel

    @property
    def _pairs(self) -> bool:
        """Whether it reads pairs of bfloat16 alone."""
        return self.native_id is not None and self.dtype == "bfloat16"

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
        if self.native_id is None:
            if problem.N < self.least:
                reasons.append(f"expected N >= {self.least}, got {problem.N}; try a larger batch")
            if self.most is not None and problem.N > self.most:
                reasons.append(f"expected N <= {self.most}, got {problem.N}; try a smaller batch")
            assert self.refuses is not None
            return reasons + self.refuses(problem)
        if problem.device.type != "cpu":
            reasons.append(f"expected a CPU tensor, got {problem.device.type}; try model.cpu()")
        if problem.dtype is not getattr(torch, self.dtype):
            got = str(problem.dtype).removeprefix("torch.")
            reasons.append(f"expected {self.dtype}, got {got}; try x.float()")
        if self._pairs and not problem.pairs:
            reasons.append("expected pairs of bfloat16, got other values; try pack(..., g=2)")
        return reasons + list(_native_reasons()[self.native_id])

    def machine_reasons(self) -> list[str]:
        """Why this row can run nothing at all on this machine; empty when it can run something."""
        # Multiples that any row takes.
        problem = Problem(
            self.op, self.format, torch.device(self.device),
            getattr(torch, self.dtype.split(",")[0]), M=64, K=64, N=max(1, self.least),
            pairs=self._pairs,
        )  # fmt: skip
        return self.unsupported_reasons(problem)

    def load(self) -> Callable[..., torch.Tensor]:
        """The function of a device kernel; this is where Triton is imported.

        Raises:
            ImportError: the kernel's module cannot be imported.
            ValueError: the row is a native one, or none that runs yet.

        Example:
            >>> rows()[0].load()  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ValueError: expected a device row, got panel.linear...; try sparseinfer.ops.linear
        """
        if not self.kernel:
            raise ValueError(f"expected a device row, got {self.name}; try sparseinfer.ops.linear")
        module, name = self.kernel.split(":")
        function: Callable[..., torch.Tensor] = getattr(importlib.import_module(module), name)
        return function


def _cusparselt(problem: Problem) -> list[str]:
    return cusparselt.unsupported_reasons(
        problem.device, problem.dtype, M=problem.M, K=problem.K, N=problem.N, n=problem.n,
        m=problem.m,
    )  # fmt: skip


def _csr(problem: Problem) -> list[str]:
    return triton.csr_reasons(problem.device, problem.dtype)


def _any_nm(problem: Problem) -> list[str]:
    return triton.unsupported_reasons(problem.device, problem.dtype, n=problem.n, m=problem.m)


def _blocks(problem: Problem) -> list[str]:
    return triton.block_reasons(problem.device, problem.dtype, groups=problem.groups)


def _unproven(problem: Problem) -> list[str]:
    return [cuda.UNPROVEN]


CUDA_ROWS: tuple[Row, ...] = (
    Row(
        "nm.linear.mma_sp",
        "nm",
        "linear",
        "float16, bfloat16",
        isa="mma_sp",
        device="cuda",
        refuses=_unproven,
    ),
)
"""The CUDA C++ kernels (csrc/cuda), best first; disabled until a GPU has proven them."""

TRITON_ROWS: tuple[Row, ...] = (
    Row(
        "nm.linear.cusparselt",
        "nm",
        "linear",
        "float16, bfloat16",
        isa="cusparselt",
        device="cuda",
        kernel="sparseinfer.kernels.cusparselt:cusparselt_linear",
        meta=triton.NmMeta.from_info,
        refuses=_cusparselt,
        least=cusparselt.MIN_TOKENS,
        prepare=cusparselt.search,
    ),
    Row(
        "nm.linear.triton",
        "nm",
        "linear",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
        kernel="sparseinfer.kernels.triton.nm_linear:nm_linear",
        meta=triton.NmMeta.from_info,
        refuses=_any_nm,
    ),
    Row(
        "csr.linear.triton",
        "csr",
        "linear",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
        kernel="sparseinfer.kernels.triton.csr_linear:csr_linear",
        meta=CsrMeta.from_info,
        refuses=_csr,
        mixed=True,
    ),
    Row(
        "bsr.linear.triton",
        "bsr",
        "linear",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
        kernel="sparseinfer.kernels.triton.bsr_linear:bsr_linear",
        meta=BsrMeta.from_info,
        refuses=_blocks,
    ),
    Row(
        "bsr.conv.triton",
        "bsr",
        "conv",
        "float32, float16, bfloat16",
        isa="triton",
        device="cuda",
        kernel="sparseinfer.kernels.triton.bsr_conv:bsr_conv",
        meta=BsrMeta.from_info,
        refuses=_blocks,
    ),
)
"""The GPU kernels, best first: torch's for prompts, and Triton's, one file each."""


@lru_cache(maxsize=1)
def _native_reasons() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row["reasons"]) for row in native.rows())


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every kernel row, best first: native rows, then CUDA C++ and Triton rows.

    Example:
        >>> "panel.linear.scalar" in [row.name for row in rows()]
        True
    """
    on_host = tuple(
        Row(row["name"], row["format"], row["op"], row["dtype"], row["isa"], "cpu", native_id=index)
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
