"""A choice between two tensors, by a condition that is constant or a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.binary import operand
from sparseinfer.export.lowering.table import Call, Refusal, lowers
from sparseinfer.export.masks import LEAST, Choice, chosen, materialised

aten = torch.ops.aten


@lowers(aten.where.self)
def _where(call: Call) -> Value:
    condition, a, b = call.args
    if isinstance(condition, Value) and condition.constant is None:
        condition = chosen(aten.clone.default, (condition,), {})
    if isinstance(condition, Value):
        assert condition.constant is not None
        return _by_constant(call, condition.constant.bool(), a, b)
    if not isinstance(condition, Choice):
        raise Refusal("its condition is computed, and one by an input is taken")
    if _hides(b):
        zeros = Value(f"{call.name} shown", (), torch.zeros(()))
        hidden = chosen(aten.where.self, (condition, zeros, b), {})
    elif _hides(a):
        zeros = Value(f"{call.name} shown", (), torch.zeros(()))
        hidden = chosen(aten.where.self, (condition, a, zeros), {})
    else:
        hidden = None
    if hidden is not None:
        x = _tensor(call, a if _hides(b) else b)
        mask = materialised(call, hidden, x.shape == call.shape)
        return call.add("binary", [x, mask], kind="add")
    raise Refusal("it chooses by a mask, and what hides a tensor, of -Inf or the least, is taken")


def _by_constant(call: Call, condition: Tensor, a: Any, b: Any) -> Value:
    """Of which one is constant: the other is added to, or clamped to the constant and back."""
    a, b = _tensor(call, a), _tensor(call, b)
    x, fill, kept = (a, b, condition) if b.constant is not None else (b, a, ~condition)
    if fill.constant is None:
        raise Refusal("it chooses of two computed tensors, and a constant is taken")
    if _hides(fill):
        added = torch.where(kept, 0.0, fill.constant)
        return call.add("binary", [x, Value(f"{call.name} hidden", tuple(added.shape), added)],
                        kind="add")  # fmt: skip
    ends = [torch.where(kept, end, fill.constant) for end in (-torch.inf, torch.inf)]
    low, high = (Value(f"{call.name} end", tuple(end.shape), end) for end in ends)
    above = call.step("above", call.shape, "binary", [x, low], kind="maximum")
    return call.add("binary", [above, high], kind="minimum")


def _tensor(call: Call, part: Any) -> Value:
    return materialised(call, part) if isinstance(part, Choice) else operand(call, part)


def _hides(part: Any) -> bool:
    return (
        isinstance(part, Value)
        and part.constant is not None
        and part.dtype == torch.float32
        and bool((part.constant <= LEAST).all())
    )
