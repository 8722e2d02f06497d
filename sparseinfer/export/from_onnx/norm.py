"""Norms over the last dimensions, or over a channel's pixels."""

from __future__ import annotations

from typing import Any

import torch

from sparseinfer.export.from_onnx.table import Call, converts

__all__: list[str] = []

aten = torch.ops.aten


@converts("LayerNormalization", "RMSNormalization")
def _layer_norm(call: Call) -> Any:
    call.only_first()
    x = call.value(0)
    axis = call.axis(call.attribute("axis", -1), len(x.shape))
    own = [None if call.optional(place) is None else call.weight(place) for place in (1, 2)]
    eps = call.attribute("epsilon", 1e-5)
    if call.node.op_type == "RMSNormalization":
        return call.aten(aten.rms_norm.default, x, list(x.shape[axis:]), own[0], eps)
    return call.aten(aten.layer_norm.default, x, list(x.shape[axis:]), *own, eps)


@converts("InstanceNormalization")
def _instance_norm(call: Call) -> Any:
    x, scale, bias = call.value(0), call.weight(1), call.weight(2)
    eps = call.attribute("epsilon", 1e-5)
    return call.aten(aten.group_norm.default, x, x.shape[1], scale, bias, eps)


@converts("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")
def _reduce(call: Call) -> Any:
    x, kind = call.floats(0), call.node.op_type
    axes = call.axes(1, since=13 if kind == "ReduceSum" else 18)
    keep = bool(call.attribute("keepdims", 1))
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return x
    over = axes or list(range(len(x.shape)))
    if kind in ("ReduceL1", "ReduceL2"):
        return call.aten(aten.linalg_vector_norm.default, x, int(kind[-1]), over, keep)
    target = {
        "ReduceMean": aten.mean.dim, "ReduceSum": aten.sum.dim_IntList,
        "ReduceMax": aten.amax.default, "ReduceMin": aten.amin.default,
    }[kind]  # fmt: skip
    return call.aten(target, x, over, keep)
