"""Which kernel row runs a packed weight on a device: decided once per weight, type and N bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseinfer.formats.handles import Handle, open_packed
from sparseinfer.kernels.registry import TRITON_ROWS, bucket_of, select
from sparseinfer.kernels.row import PAIRS, Problem, Row

__all__ = [
    "device_call",
    "kept_bytes",
    "problem_of",
    "same_device",
    "search_algorithm",
    "shared_params",
    "takes_mixed",
]

_WEIGHTS = {"int8": "int8", "bfloat16": PAIRS, "float32": "float32"}
"""What a problem calls a weight, by the type in which it multiplies x."""

_PARAMS = {field.name for field in fields(Problem)} - {"op", "format", "device", "dtype"}


def shared_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Of a format's parameters those that a problem has too: n and m of nm, and so on.

    Example:
        >>> shared_params({"n": 2, "m": 4, "kblock": 0})
        {'n': 2, 'm': 4}
    """
    return {name: value for name, value in params.items() if name in _PARAMS}


def problem_of(handle: Handle, op: str, x: Tensor, tokens: int) -> Problem:
    """The problem of `op` on `x` with this packed weight, at N = `tokens`.

    Example:
        >>> import torch
        >>> from sparseinfer import pack
        >>> from sparseinfer.formats.handles import open_packed
        >>> packed = pack(torch.eye(4), "nm", n=1, m=4)
        >>> problem_of(open_packed(packed), "linear", torch.ones(4), 1).n
        1
    """
    return Problem(
        op, handle.weights.format, x.device, x.dtype, M=handle.m, K=handle.k, N=tokens,
        groups=handle.weights.groups, weights=_WEIGHTS[handle.activations],
        **shared_params(handle.info["params"]),
    )  # fmt: skip


def device_call(
    handle: Handle, op: str, x: Tensor, tokens: int, row: Row | None = None
) -> Callable[..., Tensor]:
    """The kernel of a device row, bound to its description of the buffer.

    `row` forces one; None takes the best that runs. The choice is a look-up from the second call
    of a bucket on: nothing is measured, copied to the host or waited for. A CUDA graph can be
    captured once its calls have been made with the same shapes: a bucket chooses the row, but tiles
    follow N more closely, and Triton compiles each of them at its first call.

    Raises:
        RuntimeError: no row can run the problem, or `row` cannot.

    Example:
        >>> import torch
        >>> from sparseinfer import pack
        >>> from sparseinfer.formats.handles import open_packed
        >>> handle = open_packed(pack(torch.eye(4)))
        >>> try: device_call(handle, "pool", torch.ones(4), 1)
        ... except RuntimeError as error: print(str(error).split(",")[0])
        expected a kernel for pool in format panel on cpu with torch.float32
    """
    key = (op, x.device, x.dtype, bucket_of(tokens), row and row.name)
    call = handle.device_calls.get(key)
    if call is None:
        problem = problem_of(handle, op, x, tokens)
        chosen = select(problem, device_only=True) if row is None else row
        if reasons := chosen.unsupported_reasons(problem):
            raise RuntimeError(f"{chosen.name} cannot run this problem: {'; '.join(reasons)}")
        assert chosen.meta is not None
        call = partial(chosen.load(), meta=handle.meta(chosen.meta))
        handle.device_calls[key] = call
    return call


def search_algorithm(
    packed: Tensor, op: str, dtype: torch.dtype, tokens: int, biased: bool
) -> None:
    """Let the row that will run `op` at N = `tokens` find out what its calls shall know.

    Does nothing where no device row runs that, or where the row has nothing to find out.

    Raises:
        RuntimeError: the row's library refuses the problem.

    Example:
        >>> import torch
        >>> from sparseinfer import pack
        >>> search_algorithm(pack(torch.eye(4)), "linear", torch.float32, 512, biased=False)
    """
    handle = open_packed(packed)
    problem = problem_of(handle, op, packed.new_empty(0, dtype=dtype), tokens)
    row = next((row for row in TRITON_ROWS if not row.unsupported_reasons(problem)), None)
    if row is not None and row.search is not None and row.meta is not None:
        row.search(packed, handle.meta(row.meta), tokens, biased)


def kept_bytes(format: str, numel: int, nnz: int, dtype: torch.dtype, tokens: int) -> int:
    """Bytes that device rows make of a packed weight at their first calls, and keep beside it.

    The weight has `numel` elements, `nnz` of them stored; x is of `dtype` and `tokens` the largest
    N of its calls.

    Example:
        >>> kept_bytes("csr", 64, 8, torch.float16, tokens=1)
        32
    """
    makers = [row.keeps for row in TRITON_ROWS if row.format == format and row.keeps is not None]
    return sum(keeps(numel, nnz, dtype, tokens) for keeps in makers)


def takes_mixed(op: str, format: str) -> bool:
    """Whether device rows of this format take float16 and bfloat16 inputs beside float32 values.

    Example:
        >>> takes_mixed("linear", "nm")
        False
    """
    return any(row.mixed for row in TRITON_ROWS if (row.op, row.format) == (op, format))


def same_device(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> None:
    """Raise RuntimeError, worded as torch words it, unless the tensors are on one device.

    Example:
        >>> import torch
        >>> same_device(torch.ones(1), torch.ones(1))
    """
    for name, other in (("packed weight", packed), ("bias", bias)):
        if other is not None and other.device != x.device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{x.device} (input) and {other.device} ({name}); "
                f"try input.to({str(packed.device)!r}), or module.to({str(x.device)!r})"
            )
