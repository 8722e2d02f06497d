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
    aten.squeeze.dim, aten.unsqueeze.default, aten.flatten.using_ints,
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
