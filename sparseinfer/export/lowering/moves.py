"""What moves elements and computes nothing: shapes, padding, joining."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Node, Value
from sparseinfer.export.lowering.table import Call, Refusal, lowers

aten = torch.ops.aten


@lowers(aten.constant_pad_nd.default)
def _pad(call: Call) -> Value:
    x, ends, fill = call.value(0), list(call.args[1]), call.argument(2, "value", 0)
    if not any(ends):
        return x
    ends += [0] * (4 - len(ends))
    if len(x.shape) not in (3, 4) or any(ends[4:]) or (len(x.shape) == 3 and any(ends[2:])):
        raise Refusal("it pads other axes than those of an image")
    return call.add("pad", [x], padding=[ends[2], ends[3], ends[0], ends[1]], fill=float(fill))


@lowers(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.squeeze.dims,
    aten.squeeze.dim, aten.squeeze.default, aten.unsqueeze.default, aten.flatten.using_ints,
)  # fmt: skip
def _reshape(call: Call) -> Value:
    return call.add("reshape", [call.value(0)])


@lowers(aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default)
def _same(call: Call) -> Value:
    return call.value(0)


@lowers(aten.cat.default)
def _cat(call: Call) -> Value:
    values = list(call.args[0])
    axis = call.argument(1, "dim", 0) % len(call.shape)
    if not all(isinstance(value, Value) for value in values):
        raise Refusal("it joins other things than tensors")
    return call.add("concat", values, axis=axis)


@lowers(aten.slice.Tensor)
def _slice(call: Call) -> Value:
    x, axis = call.value(0), call.argument(1, "dim", 0) % len(call.shape)
    start, step = call.argument(2, "start", None) or 0, call.argument(4, "step", 1)
    size, count = x.shape[axis], call.shape[axis]
    first = max(0, start + size) if start < 0 else start
    if count == size:
        return x
    return call.add("slice", [x], axis=axis, first=first, count=count, step=step)


@lowers(aten.select.int)
def _select(call: Call) -> Value:
    x = call.value(0)
    axis = call.args[1] % len(x.shape)
    return _entry(call, x, axis, call.args[2] % x.shape[axis], call.name)


def _entry(call: Call, x: Value, axis: int, index: int, name: str) -> Value:
    """One entry along an axis, which goes."""
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    entry = _part(call, x, axis, index, 1, f"{name} entry")
    output = Value(name, shape[:axis] + shape[axis + 1 :])
    call.graph.nodes.append(Node("reshape", call.module, [entry], output))
    return output


def _part(call: Call, x: Value, axis: int, first: int, count: int, name: str) -> Value:
    output = Value(name, (*x.shape[:axis], count, *x.shape[axis + 1 :]))
    attributes = {"axis": axis, "first": first, "count": count, "step": 1}
    call.graph.nodes.append(Node("slice", call.module, [x], output, attributes))
    return output


@lowers(aten.split_with_sizes.default, aten.split.Tensor)
def _split(call: Call) -> tuple[Value, ...]:
    x, axis = call.value(0), call.argument(2, "dim", 0) % len(call.shape)
    sizes, whole = call.args[1], x.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - first) for first in range(0, whole, sizes)]
    parts, first = [], 0
    for index, size in enumerate(sizes):
        parts.append(_part(call, x, axis, first, size, f"{call.name} {index}"))
        first += size
    return tuple(parts)


@lowers(aten.unbind.int)
def _unbind(call: Call) -> tuple[Value, ...]:
    x = call.value(0)
    axis = call.argument(1, "dim", 0) % len(x.shape)
    return tuple(
        _entry(call, x, axis, index, f"{call.name} {index}") for index in range(x.shape[axis])
    )
