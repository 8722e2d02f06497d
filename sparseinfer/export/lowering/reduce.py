"""Sums, means and maxima over any dimensions."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import LOWERINGS, Call, Lowering, lowers

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
