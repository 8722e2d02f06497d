"""What moves elements and computes nothing: shapes, padding, joining."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Value
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


@lowers(aten.permute.default, aten.transpose.int)
def _permute(call: Call) -> Value:
    x = call.value(0)
    axes = list(range(len(x.shape)))
    if isinstance(call.args[1], int):
        a, b = call.args[1] % len(axes), call.args[2] % len(axes)
        axes[a], axes[b] = axes[b], axes[a]
    else:
        axes = [axis % len(axes) for axis in call.args[1]]
    return call.add("permute", [x], axes=axes)


@lowers(aten.slice.Tensor)
def _slice(call: Call) -> Value:
    x = call.value(0)
    axis = call.argument(1, "dim", 0) % len(x.shape)
    first, size = call.argument(2, "start", None) or 0, x.shape[axis]
    start = max(0, first + size) if first < 0 else first
    if call.shape == x.shape:
        return x
    return call.add("slice", [x], axis=axis, start=start, step=call.argument(4, "step", 1))


@lowers(aten.select.int)
def _select(call: Call) -> Value:
    x = call.value(0)
    axis = call.args[1] % len(x.shape)
    return _entry(call, x, axis, call.args[2] % x.shape[axis], call.name)


def _entry(call: Call, x: Value, axis: int, index: int, name: str) -> Value:
    """One entry along an axis, which goes."""
    entry = _part(call, x, axis, index, 1, f"{name} entry")
    output = Value(name, x.shape[:axis] + x.shape[axis + 1 :], dtype=x.dtype)
    return call.node("reshape", [entry], output)


def _part(call: Call, x: Value, axis: int, start: int, count: int, name: str) -> Value:
    output = Value(name, (*x.shape[:axis], count, *x.shape[axis + 1 :]), dtype=x.dtype)
    return call.node("slice", [x], output, axis=axis, start=start, step=1)


@lowers(aten.roll.default)
def _roll(call: Call) -> Value:
    """Along each axis, the end of the tensor and then its beginning."""
    x, shifts = call.value(0), list(call.args[1])
    axes = list(call.argument(2, "dims", []))
    if not axes:
        raise Refusal("it rolls all dimensions as one")
    for axis, shift in zip(axes, shifts, strict=True):
        axis %= len(x.shape)
        size = x.shape[axis]
        first = -shift % size
        if first:
            ends = [_part(call, x, axis, start, count, f"{call.name} {start}")
                    for start, count in ((first, size - first), (0, first))]  # fmt: skip
            x = call.step(f"rolled {axis}", x.shape, "concat", [*ends], axis=axis)
    return x


@lowers(aten.cat.default)
def _cat(call: Call) -> Value:
    values = list(call.args[0])
    axis = call.argument(1, "dim", 0) % len(call.shape)
    if not all(isinstance(value, Value) for value in values):
        raise Refusal("it joins other things than tensors")
    return call.add("concat", values, axis=axis)


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
