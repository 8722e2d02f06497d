"""What masks are made of: comparisons, logic, changes of type, choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sparseinfer.export.from_onnx.table import OPERATORS, Call, Converter, Refusal, converts
from sparseinfer.export.graph import Value

__all__ = ["NotANumber", "cast"]

aten = torch.ops.aten

LOGIC = {
    "And": aten.logical_and.default, "Or": aten.logical_or.default,
    "Greater": aten.gt.Tensor, "GreaterOrEqual": aten.ge.Tensor, "Less": aten.lt.Tensor,
    "LessOrEqual": aten.le.Tensor,
}  # fmt: skip


@dataclass(frozen=True)
class NotANumber:
    """Where a tensor is NaN."""

    source: Value


def _logic(target: Any) -> Converter:
    return lambda call: call.aten(target, call.part(0), call.part(1))


for _name, _target in LOGIC.items():
    OPERATORS[_name] = _logic(_target)


@converts("Not")
def _not(call: Call) -> Any:
    return call.aten(aten.logical_not.default, call.part(0))


@converts("Equal")
def _equal(call: Call) -> Any:
    a, b = call.part(0), call.part(1)
    for x, own in ((a, b), (b, a)):
        if isinstance(own, Value) and own.constant is not None and own.constant.numel() == 1:
            return call.aten(aten.eq.Scalar, x, own.constant.item())
    return call.aten(aten.eq.Tensor, a, b)


def cast(call: Call) -> Any:
    """A change of type, of what only masks are made of; those of integers are in `quantized`."""
    import onnx_ir

    x, to = call.part(0), call.attribute("to", 0)
    kinds = {
        onnx_ir.DataType.FLOAT: torch.float32, onnx_ir.DataType.INT64: torch.int64,
        onnx_ir.DataType.INT32: torch.int64, onnx_ir.DataType.BOOL: torch.bool,
    }  # fmt: skip
    if to not in kinds:
        raise Refusal(f"it changes the type of a tensor to {to}")
    dtype = x.dtype if isinstance(x, Value) else x.if_zero.dtype
    # Of numbers that stand for indices; whether they fit in 32 bits is looked at where they do.
    if dtype == kinds[to]:
        return x
    if isinstance(x, Value) and x.constant is None and x.dtype == torch.float32:
        raise Refusal("it changes the type of a tensor that is computed")
    return call.aten(aten._to_copy.default, x, dtype=kinds[to])


@converts("IsNaN")
def _is_nan(call: Call) -> NotANumber:
    return NotANumber(call.computed(0))


@converts("Where")
def _where(call: Call) -> Any:
    condition = call.optional(0)
    if isinstance(condition, NotANumber):
        return _without_nan(call, condition)
    return call.aten(aten.where.self, call.part(0), call.part(1), call.part(2))


def _without_nan(call: Call, condition: NotANumber) -> Value:
    """Zeros where a softmax saw no keys: attention gives them by itself."""
    zero, x = call.weight(1), call.computed(2)
    assert zero.constant is not None
    if x is not condition.source or zero.constant.any() or x.shape != call.shape:
        raise Refusal("it puts other things than zeros in the place of NaN")
    return call.add("zero_nan", [x])
