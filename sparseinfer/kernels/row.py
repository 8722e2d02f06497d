"""What a kernel row says of a kernel, and the problem that it is asked about."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from sparseinfer import native

__all__ = ["PAIRS", "Problem", "Row"]

PAIRS = "pairs of bfloat16"
"""Values that multiply x in bfloat16; bfloat16 values that stand alone are widened instead."""


@dataclass(frozen=True)
class Problem:
    """What a kernel is asked to compute.

    `op` is `linear` or `conv`; `format` is the packed format and `weights` the type of its values,
    `int8`, `PAIRS` or `float32`, which stands for all others; `dtype` is the type of x; M, K and N
    are output rows, input columns of one group, and tokens or pixels; `n`:`m` is the pattern of an
    nm weight.

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
    weights: str = "float32"


@dataclass(frozen=True)
class Row:
    """One kernel: format and types of the weights it reads, operation, types of x, where it runs.

    `native_id` is the row's index in the native table, and None for a device kernel. Of that one
    `kernel` is "module:function", imported at its first use and called as
    `function(x, packed, bias, out_features, activation, meta=...)` or, for a convolution,
    `function(x, packed, bias, out_channels, kernel_size, stride, padding, dilation, groups,
    padding_mode, activation, meta=...)`; `meta` reads its description of the buffer from
    `formats.info` and the device's multiprocessors, `refuses` says why a problem is none for it
    without importing the kernel, and it takes `least` to `most` tokens or pixels (None: any
    number). `mixed` tells that it takes float16 and bfloat16 inputs beside float32 values itself.
    `search(packed, meta, tokens, biased)` finds out, where a layer is converted, what its calls of
    N = `tokens` shall know. `keeps(numel, nnz, dtype, tokens)` is how many bytes it makes of a
    packed weight at its first calls, and keeps.
    """

    name: str
    format: str
    op: str
    x_types: tuple[str, ...]
    isa: str
    device: str
    native_id: int | None = None
    kernel: str = ""
    meta: Callable[[Mapping[str, Any], int], Any] | None = None
    refuses: Callable[[Problem], list[str]] | None = None
    least: int = 0
    most: int | None = None
    mixed: bool = False
    search: Callable[[torch.Tensor, Any, int, bool], object] | None = None
    keeps: Callable[[int, int, torch.dtype, int], int] | None = None
    weight_types: tuple[str, ...] = ("float32", "float16", "bfloat16")

    @property
    def dtype(self) -> str:
        """The types of x in words.

        Example:
            >>> from sparseinfer.kernels.registry import rows
            >>> rows()[0].dtype
            'float32'
        """
        return ", ".join(self.x_types)

    @property
    def off(self) -> bool:
        """Whether it runs nowhere yet: it is listed for its reason alone.

        Example:
            >>> from sparseinfer.kernels.registry import rows
            >>> [row.name for row in rows() if row.off]
            ['nm.linear.mma_sp']
        """
        return self.native_id is None and not self.kernel

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        """Why this row cannot run `problem` on this machine; empty when it can.

        Example:
            >>> from sparseinfer.kernels.registry import rows
            >>> rows()[0].unsupported_reasons(Problem("pool", "panel"))[0].split(";")[0]
            'expected op pool, got linear'
        """
        reasons = []
        if problem.op != self.op:
            reasons.append(f"expected op {problem.op}, got {self.op}; try another row")
        if problem.format != self.format:
            reasons.append(f"expected format {problem.format}, got {self.format}; try another row")
        if problem.weights not in self.weight_types:
            reasons.append(
                f"expected weights of {problem.weights}, got {', '.join(self.weight_types)}; try "
                "another row"
            )
        if self.native_id is None:
            if problem.N < self.least:
                reasons.append(f"expected N >= {self.least}, got {problem.N}; try a larger batch")
            if self.most is not None and problem.N > self.most:
                reasons.append(f"expected N <= {self.most}, got {problem.N}; try a smaller batch")
            assert self.refuses is not None
            return reasons + self.refuses(problem)
        if problem.device.type != "cpu":
            reasons.append(f"expected a CPU tensor, got {problem.device.type}; try model.cpu()")
        got = str(problem.dtype).removeprefix("torch.")
        if got not in self.x_types:
            move = "float()" if "float32" in self.x_types else f"to(torch.{self.x_types[0]})"
            reasons.append(f"expected {self.dtype}, got {got}; try x.{move}")
        return reasons + list(_native_reasons()[self.native_id])

    def machine_reasons(self) -> list[str]:
        """Why this row can run nothing at all on this machine; empty when it can run something."""
        # Multiples that any row takes.
        problem = Problem(
            self.op, self.format, torch.device(self.device),
            getattr(torch, self.x_types[0]), M=64, K=64, N=max(1, self.least),
            weights=self.weight_types[0],
        )  # fmt: skip
        return self.unsupported_reasons(problem)

    def load(self) -> Callable[..., torch.Tensor]:
        """The function of a device kernel; this is where Triton is imported.

        Raises:
            ImportError: the kernel's module cannot be imported.
            ValueError: the row is a native one, or none that runs yet.

        Example:
            >>> from sparseinfer.kernels.registry import rows
            >>> rows()[0].load()  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ValueError: expected a device row, got panel.linear...; try sparseinfer.ops.linear
        """
        if not self.kernel:
            raise ValueError(f"expected a device row, got {self.name}; try sparseinfer.ops.linear")
        module, name = self.kernel.split(":")
        function: Callable[..., torch.Tensor] = getattr(importlib.import_module(module), name)
        return function


@lru_cache(maxsize=1)
def _native_reasons() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row["reasons"]) for row in native.rows())
