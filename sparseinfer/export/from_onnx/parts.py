"""Parts of tensors: slices, splits, entries by their numbers, rows of a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseinfer.export.from_onnx.table import Call, Refusal, converts
from sparseinfer.export.graph import Value
from sparseinfer.export.masks import Choice

__all__: list[str] = []

aten = torch.ops.aten

MOST_PARTS = 256
"""That a tensor is cut in to put them in another order."""


@converts("Slice")
def _slice(call: Call) -> Any:
    x = call.part(0)
    starts, ends = call.numbers(1) or [], call.numbers(2) or []
    axes = call.numbers(3) or list(range(len(starts)))
    steps = call.numbers(4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise Refusal(f"its step is {step}, and steps from 1 are taken")
        x = call.aten(aten.slice.Tensor, x, axis, start, end, step)
    return x


@converts("Split")
def _split(call: Call) -> Any:
    x = call.part(0)
    axis, size = call.axis(call.attribute("axis", 0), len(x.shape)), 0
    sizes = call.numbers(1) if call.opset >= 13 else call.attribute("split", None)
    whole = x.shape[axis]
    if sizes is None:
        count = len(call.node.outputs)
        size = -(-whole // count)
        sizes = [min(size, whole - first) for first in range(0, whole, size)]
    parts, first = [], 0
    for size in sizes:
        parts.append(call.aten(aten.slice.Tensor, x, axis, first, first + size))
        first += size
    return tuple(parts)


@converts("Gather")
def _gather(call: Call) -> Any:
    x, index = call.part(0), call.part(1)
    axis = call.axis(call.attribute("axis", 0), len(x.shape))
    if isinstance(index, Choice) or index.constant is None:
        if axis != 0 or not isinstance(x, Value) or x.constant is None or len(x.shape) != 2:
            raise Refusal("its indices are computed, and rows of a table are taken by such")
        return call.aten(aten.embedding.default, x, index)
    size = x.shape[axis]
    places = index.constant.long()
    places = torch.where(places < 0, places + size, places)
    if isinstance(x, Choice) or x.constant is not None:
        return call.aten(aten.index.Tensor, x, [*[None] * axis, _constant(call, places)])
    if places.dim() == 0:
        return call.aten(aten.select.int, x, axis, int(places))
    taken = _taken(call, x, axis, places.reshape(-1).tolist())
    return call.aten(aten.view.default, taken, list(call.shape))


def _taken(call: Call, x: Value, axis: int, places: list[int]) -> Any:
    """Entries along an axis, by runs of neighbours."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1][1] += 1
        else:
            runs.append([place, place + 1])
    if len(runs) > MOST_PARTS:
        raise Refusal(f"it takes {len(runs)} parts of a tensor, and up to {MOST_PARTS} are taken")
    parts = [call.aten(aten.slice.Tensor, x, axis, first, end) for first, end in runs]
    return parts[0] if len(parts) == 1 else call.aten(aten.cat.default, parts, axis)


def _constant(call: Call, tensor: Tensor) -> Value:
    return Value(f"{call.name} places", tuple(tensor.shape), tensor, tensor.dtype)


@converts("GatherND")
def _gather_nd(call: Call) -> Any:
    """Elements by their coordinates, of a constant or of a mask."""
    x, index = call.part(0), call.constant(1)
    if call.attribute("batch_dims", 0):
        raise Refusal("it gathers by batches")
    if isinstance(x, Value) and x.dtype == torch.float32 and x.constant is None:
        raise Refusal("it gathers elements of a tensor that is computed")
    assert index.constant is not None
    places = [_constant(call, part) for part in index.constant.long().unbind(-1)]
    return call.aten(aten.index.Tensor, x, places)


@converts("GatherElements")
def _gather_elements(call: Call) -> Any:
    x, index = call.constant(0), call.constant(1)
    return call.aten(aten.gather.default, x, call.attribute("axis", 0), index)
