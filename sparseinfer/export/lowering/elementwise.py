"""Activations and softmax."""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import LOWERINGS, Call, Lowering, lowers

aten = torch.ops.aten


def _activation(kind: str) -> Lowering:
    return lambda call: call.add("activation", [call.value(0)], kind)


for _target, _kind in {
    aten.relu.default: "relu", aten.relu_.default: "relu", aten.relu6.default: "relu6",
    aten.silu.default: "silu", aten.sigmoid.default: "sigmoid", aten.tanh.default: "tanh",
}.items():  # fmt: skip
    LOWERINGS[_target] = _activation(_kind)


@lowers(aten.gelu.default)
def _gelu(call: Call) -> Value:
    kind = "gelu" if call.argument(1, "approximate", "none") == "none" else "gelu_tanh"
    return call.add("activation", [call.value(0)], kind)


@lowers(aten._softmax.default)
def _softmax(call: Call) -> Value:
    x = call.value(0)
    return call.add("softmax", [x], axis=call.args[1] % len(x.shape))
