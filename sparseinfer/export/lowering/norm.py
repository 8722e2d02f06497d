"""Norms over the last dimensions, and over a channel's or a group's pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import Call, Refusal, lowers

aten = torch.ops.aten


@lowers(aten.layer_norm.default, aten.native_layer_norm.default)
def _layer_norm(call: Call) -> Value:
    weight, bias = call.argument(2, "weight", None), call.argument(3, "bias", None)
    return _normalized(call, weight, bias, float(call.argument(4, "eps", 1e-5)), True)


@lowers(aten.rms_norm.default)
def _rms_norm(call: Call) -> Value:
    eps = call.argument(3, "eps", None)
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    return _normalized(call, call.argument(2, "weight", None), None, eps, False)


def _normalized(
    call: Call, weight: Value | None, bias: Value | None, eps: float, centred: bool
) -> Value:
    """Over the last dimensions: of several, over one that has all their elements."""
    x, normalized = call.value(0), tuple(call.args[1])
    for value in (weight, bias):
        if value is not None and value.constant is None:
            raise Refusal("its weight or bias is computed")
        if value is not None and value.shape != normalized:
            raise Refusal(f"it normalises over {list(normalized)} with {value}")
    if len(normalized) == 1:
        return call.add("layer_norm", [x, weight, bias], eps=eps, centred=centred)
    flat = (*x.shape[: len(x.shape) - len(normalized)], math.prod(normalized))
    rows = call.step("rows", flat, "reshape", [x])
    y = call.step("normal", flat, "layer_norm", [rows, _flat(weight), _flat(bias)], eps=eps,
                  centred=centred)  # fmt: skip
    return call.add("reshape", [y])


def _flat(value: Value | None) -> Value | None:
    if value is None or value.constant is None:
        return None
    row = value.constant.reshape(-1)
    return Value(value.name, tuple(row.shape), row)


@lowers(aten.group_norm.default)
def _group_norm(call: Call) -> Value:
    weight, bias = call.argument(2, "weight", None), call.argument(3, "bias", None)
    return _by_groups(call, call.args[1], weight, bias, call.argument(4, "eps", 1e-5))


@lowers(aten.native_group_norm.default)
def _native_group_norm(call: Call) -> Value:
    return _by_groups(call, call.args[6], call.args[1], call.args[2], call.args[7])


@lowers(aten.instance_norm.default)
def _instance_norm(call: Call) -> Value:
    if not call.args[5]:
        raise Refusal("it normalises by statistics that it keeps")
    return _by_groups(call, call.value(0).shape[1], call.args[1], call.args[2], call.args[7])


def _by_groups(
    call: Call, groups: int, weight: Value | None, bias: Value | None, eps: float
) -> Value:
    """Each group of channels is a row; then a factor and a term for each channel."""
    x = call.value(0)
    rows = call.step("rows", (x.shape[0], groups, math.prod(x.shape[1:]) // groups), "reshape",
                     [x])  # fmt: skip
    y = call.step("normal", rows.shape, "layer_norm", [rows, None, None], eps=float(eps),
                  centred=True)  # fmt: skip
    y = call.step("channels", x.shape, "reshape", [y])
    for value, kind in ((weight, "multiply"), (bias, "add")):
        if value is not None:
            if value.constant is None:
                raise Refusal("its weight or bias is computed")
            own = _channels(value.name, value.constant, len(x.shape))
            y = call.step(kind, x.shape, "binary", [y, own], kind=kind)
    return y


def _channels(name: str, row: Tensor, rank: int) -> Value:
    shape = (len(row), *[1] * (rank - 2))
    return Value(name, shape, row.reshape(shape))
