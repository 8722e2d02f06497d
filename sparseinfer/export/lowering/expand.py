"""Tensors repeated along dimensions of one element, where what reads them does not broadcast."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import Call, lowers

aten = torch.ops.aten


def expanded(call: Call, x: Value, shape: tuple[int, ...]) -> Value:
    """A node that repeats a tensor: times ones along the dimensions that grow, and those alone."""
    have = (1,) * (len(shape) - len(x.shape)) + x.shape
    ones = torch.ones([to if at != to else 1 for at, to in zip(have, shape, strict=True)])
    factor = Value(f"{call.name} ones", tuple(ones.shape), ones)
    return call.step("expanded", shape, "binary", [x, factor], kind="multiply")


@lowers(aten.expand.default)
def _expand(call: Call) -> Value:
    x = call.value(0)
    return x if x.shape == call.shape else expanded(call, x, call.shape)


@lowers(aten.repeat.default)
def _repeat(call: Call) -> Value:
    """Copies side by side: a dimension of its own for each number of them."""
    x, times = call.value(0), list(call.args[1])
    have = [1] * (len(times) - len(x.shape)) + list(x.shape)
    apart = [size for at in have for size in (1, at)]
    wide = [size for at, count in zip(have, times, strict=True) for size in (count, at)]
    split = call.step("apart", tuple(apart), "reshape", [x])
    return call.add("reshape", [expanded(call, split, tuple(wide))])
