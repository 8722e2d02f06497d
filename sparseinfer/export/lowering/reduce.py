"""Sums, means and maxima over any dimensions."""

from __future__ import annotations

from typing import Any

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import LOWERINGS, Call, Lowering, Refusal, lowers

aten = torch.ops.aten


def _reduce(kind: str) -> Lowering:
    return lambda call: reduced(call, kind)


def reduced(call: Call, kind: str) -> Value:
    """A reduction over the dimensions that a call names: all, where it names none."""
    x, dims = call.value(0), call.argument(1, "dim", None)
    rank = len(x.shape)
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
    axes = sorted(dim % rank for dim in dims)
    if not axes:
        return call.add("reshape", [x])
    keepdim = bool(call.argument(2, "keepdim", False))
    return call.add("reduce", [x], kind=kind, axes=axes, keepdim=keepdim)


for _kind, _targets in {
    "sum": (aten.sum.dim_IntList, aten.sum.default),
    "mean": (aten.mean.default,),
    "maximum": (aten.amax.default, aten.max.dim, aten.max.default),
    "minimum": (aten.amin.default, aten.min.dim, aten.min.default),
}.items():
    LOWERINGS.update(dict.fromkeys(_targets, _reduce(_kind)))


@lowers(aten.mean.dim)
def _mean(call: Call) -> Value:
    x, dims = call.value(0), call.args[1] or ()
    if len(x.shape) == 4 and sorted(dim % 4 for dim in dims) == [2, 3]:
        return call.add("global_average_pool", [x])
    return reduced(call, "mean")


@lowers(aten.linalg_vector_norm.default)
def _vector_norm(call: Call) -> Value:
    """sqrt(sum(x^2)), or sum(|x|)."""
    x, order, dims = call.value(0), call.argument(1, "ord", 2), call.argument(2, "dim", None)
    if order not in (1, 2):
        raise Refusal(f"its order is {order}, and 1 and 2 are taken")
    rank = len(x.shape)
    over: dict[str, Any] = {
        "axes": sorted(dim % rank for dim in dims or range(rank)),
        "keepdim": bool(call.argument(3, "keepdim", False)),
    }
    if order == 1:
        size = call.step("sizes", x.shape, "unary", [x], kind="abs")
        return call.add("reduce", [size], kind="sum", **over)
    square = call.step("squares", x.shape, "binary", [x, x], kind="multiply")
    total = call.step("total", call.shape, "reduce", [square], kind="sum", **over)
    return call.add("unary", [total], kind="sqrt")
