"""`SPARSEINFER_VERBOSE`: what the package tells on standard error, through `logging`.

    dispatch   which kernel runs, once for every problem that is met
    convert    what was decided for every layer, and what it was decided from

Several are separated by commas. Without it nothing is printed: the loggers `sparseinfer.*` are the
application's to listen to. It is read when the package is imported; what it does not name costs
nothing.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparseinfer import native
from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels import registry
from sparseinfer.kernels.dispatch import problem_of

__all__ = ["NAMES", "configure", "logged"]

NAMES: dict[str, tuple[str, ...]] = {
    "dispatch": ("sparseinfer.dispatch",),
    "convert": ("sparseinfer.convert", "sparseinfer.timing"),
}
"""The loggers that each name turns on."""

_Operator = TypeVar("_Operator", bound=Callable[..., Tensor])

_dispatch = logging.getLogger("sparseinfer.dispatch")


def configure(value: str) -> list[str]:
    """Let the loggers that `value` names speak on standard error; returns the names understood.

    A name that is unknown is told by a warning.

    Example:
        >>> configure("")
        []
    """
    names = [name.strip() for name in value.split(",") if name.strip()]
    known = [name for name in names if name in NAMES]
    for name in names:
        if name not in NAMES:
            warnings.warn(
                f"expected SPARSEINFER_VERBOSE to list {' or '.join(NAMES)}, got {name!r}; "
                "try SPARSEINFER_VERBOSE=dispatch",
                stacklevel=2,
            )
    for name in known:
        for logger in map(logging.getLogger, NAMES[name]):
            logger.setLevel(logging.DEBUG)
            logger.addHandler(_handler())
    return known


@functools.lru_cache(maxsize=1)
def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    return handler


def logged(op: str, on: bool | None = None) -> Callable[[_Operator], _Operator]:
    """Decorate an operator of the family `op` (linear, conv) to say which kernel it runs.

    The operator takes x, the packed weight and other arguments, `row` among them where a row can be
    forced. It says so once for each distinct problem: format, shapes, strides, type and threads.
    Where dispatch is not to be logged the operator is left as it is.

    Example:
        >>> logged("linear", on=False)(len) is len
        True
    """

    def decorate(operator: _Operator) -> _Operator:
        if not (_ON if on is None else on):
            return operator
        signature = inspect.signature(operator)
        met: set[tuple[object, ...]] = set()

        @functools.wraps(operator)
        def call(x: Tensor, packed: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            weights, threads = open_packed(packed).weights, torch.get_num_threads()
            shape, groups = tuple(weights.shape), weights.groups
            row = signature.bind(x, packed, *args, **kwargs).arguments.get("row", -1)
            problem = (weights.format, shape, groups, x.shape, x.stride(), x.dtype, threads, row)
            if problem not in met:
                met.add(problem)
                text = f"{op} {weights.format}: weight {'x'.join(map(str, shape))}"
                if groups > 1:
                    text += f" in {groups} groups"
                text += f", x {'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}"
                chosen = _row(op, packed, x, row)
                _dispatch.debug("%s on %s, %d threads: %s", text, x.device.type, threads, chosen)
            return operator(x, packed, *args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def _row(op: str, packed: Tensor, x: Tensor, row: int | registry.Row) -> str:
    """The name of the row that runs, or why none does."""
    if isinstance(row, registry.Row):
        return row.name
    handle = open_packed(packed)
    try:
        if x.device.type == "cpu":
            if row >= 0:
                return str(native.rows()[row]["name"])
            # Of the types beside float32 only pairs of bfloat16 meet one unconverted.
            kept = handle.is_pairs and x.dtype is torch.bfloat16
            problem = problem_of(handle, op, x if kept else x.new_empty(0, dtype=torch.float32), 1)
            return registry.select(problem).name
        tokens = x.numel() // max(1, x.shape[-1 if op == "linear" else 1])
        return registry.select(problem_of(handle, op, x, tokens)).name
    except RuntimeError as refusal:
        return str(refusal).splitlines()[0]


_ON = "dispatch" in configure(os.environ.get("SPARSEINFER_VERBOSE", ""))
