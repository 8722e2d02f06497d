"""Triton kernels: what each can run is answered here, without importing Triton.

The kernels live one to a file (`nm_linear.py`) and import Triton when they are first used. What the
registry and the modules need before that is here where all kernels share it. Where those of one
format do, it stands beside them (`nm_planes.py`, `csr_rows.py`, `bsr_grid.py`): the description of
a packed buffer, and the limits, which are the reasons why a kernel cannot run a problem.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sparseinfer.formats.value_types import VALUE_TYPES
from sparseinfer.kernels.limits import cuda_reasons
from sparseinfer.kernels.row import Problem, Row

__all__ = ["NO_KERNEL", "device_reasons", "float_limits", "interpreting", "row_of"]

NO_KERNEL: dict[tuple[str, str], str] = {
    ("nm", "conv"): "a 2:4 convolution stays dense, for expanding its weights saves memory traffic "
    "only and cannot win when compute-bound",
}
"""Why there is no kernel on a GPU, by format and operation, where that is a choice."""

MIN_TRITON = (3, 2)


def row_of(
    file: str,
    meta: Callable[[Mapping[str, Any], int], Any],
    refuses: Callable[[Problem], list[str]],
    *,
    mixed: bool = False,
    keeps: Callable[[int, int, torch.dtype, int], int] | None = None,
) -> Row:
    """The row of the kernel in `file`, which is named for its format and operation, as its
    function is. The others are as in `Row`.

    Example:
        >>> row_of("csr_linear", dict, float_limits).name
        'csr.linear.triton'
    """
    format, op = file.split("_")
    return Row(
        f"{format}.{op}.triton", format, op, tuple(VALUE_TYPES), isa="triton", device="cuda",
        kernel=f"{__name__}.{file}:{file}", meta=meta, refuses=refuses, mixed=mixed, keeps=keeps,
    )  # fmt: skip


def interpreting() -> bool:
    """Whether Triton interprets its kernels (`TRITON_INTERPRET=1`), which needs no GPU.

    Example:
        >>> interpreting() or "TRITON_INTERPRET" not in os.environ
        True
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def _triton_reasons() -> list[str]:
    if importlib.util.find_spec("triton") is None:
        return ["expected Triton, got none installed; try pip install triton"]
    version = _triton_version()
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if release < MIN_TRITON:
        least = ".".join(map(str, MIN_TRITON))
        return [f"expected Triton >= {least}, got {version}; try pip install -U triton"]
    return []


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        # Nightly, ROCm and Windows builds are distributed under names of their own. One that no
        # distribution owns was built by its user, and is taken.
        names = importlib.metadata.packages_distributions().get("triton", ())
        return next(map(importlib.metadata.version, names), ".".join(map(str, MIN_TRITON)))


def device_reasons(device: torch.device | str) -> list[str]:
    """Why no Triton kernel runs with tensors on `device`; empty when it can.

    Example:
        >>> device_reasons("meta") == [] or "meta" in device_reasons("meta")[-1]
        True
    """
    return _triton_reasons() + ([] if interpreting() else cuda_reasons(torch.device(device)))


def float_limits(problem: Problem) -> list[str]:
    """Why no Triton kernel runs inputs of this type on this device; empty when one can.

    Under `TRITON_INTERPRET=1` every device is accepted: the interpreter runs on the host.

    Example:
        >>> float_limits(Problem("linear", "csr", torch.device("cuda"), torch.float64))[-1]
        'expected input of float32, float16 or bfloat16, got float64; try input.float()'
    """
    reasons = device_reasons(problem.device)
    if problem.dtype not in VALUE_TYPES.values():
        got = str(problem.dtype).removeprefix("torch.")
        reasons.append(
            f"expected input of float32, float16 or bfloat16, got {got}; try input.float()"
        )
    return reasons
