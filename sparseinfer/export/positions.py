"""Positions that a model counts: how many tokens before, and with, each are no padding.

RoBERTa and its kin number the tokens that are no padding, by a running sum of a mask, and look
their positions up in a table. Here the sum is one of floats, which are exact up to 2^24, and the
rows of the table that can be meant are multiplied by zeros, and by 1 the one that is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering import Call, Refusal
from sparseinfer.export.masks import Choice, materialised

__all__ = ["Positions", "counted"]

aten = torch.ops.aten

MOVES = (aten.view.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim)
"""Operators that leave elements where they are."""

SAME = (aten.clone.default, aten.alias.default, aten.detach.default)
"""Operators that give their operand as it is."""

MOST_TOKENS = 2**12
"""That are counted: the sums of so many masks take the square of that."""


@dataclass(eq=False)
class Positions:
    """Whole numbers from `least` to `most`, which `value` holds as float32.

    Example:
        >>> Positions(Value("counts", (1, 7)), 0, 7).most
        7
    """

    value: Value
    least: int
    most: int


def counted(target: Any, call: Call) -> Any:
    """What an operator gives that counts tokens, or computes with such counts, else None.

    Raises:
        Refusal: it reads counts, and is none that positions are made of.
    """
    args = call.args
    if target == aten.cumsum.default and isinstance(args[0], Choice):
        return _counts(call, args[0])
    parts = [part for part in tree_leaves((args, call.kwargs)) if isinstance(part, Positions)]
    if not parts:
        return None
    x = parts[0]
    if target == aten.embedding.default and args[1] is x:
        return _rows(call, call.constant(0), x)
    if target == aten.gather.default and args[2] is x:
        return _gathered(call)
    if target == aten._to_copy.default:
        return x.value if call.dtype == torch.float32 else x
    if args[0] is x and target in SAME:
        return x
    if args[0] is x and target in MOVES:
        return Positions(call.step("moved", call.shape, "reshape", [x.value]), x.least, x.most)
    if args[0] is x and target in (aten.add.Tensor, aten.sub.Tensor) and not call.kwargs:
        return _shifted(call, x, args[1], 1 if target == aten.add.Tensor else -1)
    if target == aten.mul.Tensor and len(parts) == 1:
        other = args[1] if args[0] is x else args[0]
        if isinstance(other, Choice):
            return _masked(call, x, other)
    raise Refusal("it reads positions that are counted, and nothing computes it of these")


def _counts(call: Call, mask: Choice) -> Positions | Value:
    """Each mask beside a row of a triangle of ones, whose products are summed."""
    if torch.equal(mask.if_zero, mask.otherwise):
        sums = aten.cumsum.default(mask.if_zero, *call.args[1:], **call.kwargs)
        return Value(call.name, tuple(sums.shape), sums, sums.dtype)
    shape, axis = mask.shape, call.argument(1, "dim", 0)
    if not shape or axis % len(shape) != len(shape) - 1 or shape[-1] > MOST_TOKENS:
        raise Refusal(f"it sums over other than the last dimension, of up to {MOST_TOKENS}")
    x, least, most = _numbers(call, mask)
    size = shape[-1]
    wide = call.step("masks", (*shape[:-1], 1, size), "reshape", [x])
    ones = Value(f"{call.name} ones", (size, size), torch.ones(size, size).tril())
    shown = call.step("before", (*shape[:-1], size, size), "binary", [wide, ones], kind="multiply")
    sums = call.step(
        "counts", shape, "reduce", [shown], kind="sum", axes=[len(shape)], keepdim=False
    )
    return Positions(sums, min(least, least * size), max(most, most * size))


def _numbers(call: Call, mask: Choice) -> tuple[Value, int, int]:
    """A mask of whole numbers as floats, with the least and the largest of these."""
    if mask.if_zero.is_floating_point():
        raise Refusal(f"it counts by a mask of {mask.if_zero.dtype}, and whole numbers are taken")
    both = torch.cat([mask.if_zero.reshape(-1), mask.otherwise.reshape(-1)]).long()
    floats = Choice(
        mask.source, mask.index, mask.if_zero.float(), mask.otherwise.float(), mask.exact,
        mask.number,
    )  # fmt: skip
    return materialised(call, floats), int(both.min()), int(both.max())


def _shifted(call: Call, x: Positions, by: Any, sign: int) -> Positions:
    if isinstance(by, Value) and by.constant is not None and by.constant.numel() == 1:
        by = by.constant.item()
    if not isinstance(by, int):
        raise Refusal("it adds another thing than a whole number to positions")
    if by == 0:
        return x
    number = Value(f"{call.name} number", (), torch.tensor(float(sign * by)))
    y = call.step("shifted", call.shape, "binary", [x.value, number], kind="add")
    return Positions(y, x.least + sign * by, x.most + sign * by)


def _masked(call: Call, x: Positions, mask: Choice) -> Positions:
    other, least, most = _numbers(call, mask)
    ends = [a * b for a in (x.least, x.most) for b in (least, most)]
    y = call.step("masked", call.shape, "binary", [x.value, other], kind="multiply")
    return Positions(y, min(ends), max(ends))


def _gathered(call: Call) -> Value:
    """Of a constant whose elements are all the same, as types of tokens that are not given."""
    source = call.constant(0).constant
    assert source is not None
    if source.unique().numel() != 1:
        raise Refusal("it takes different elements of a constant at positions that are counted")
    same = source.reshape(-1)[:1].expand(call.shape).contiguous()
    return Value(call.name, call.shape, same, same.dtype)


def _rows(call: Call, table: Value, x: Positions) -> Value:
    """1 - |position - row|, or 0 where that is below, times the rows."""
    assert table.constant is not None
    if x.least < 0 or x.most >= len(table.constant):
        raise Refusal(
            f"it looks up positions from {x.least} to {x.most}, and its table has "
            f"{len(table.constant)} rows"
        )
    shape, count = x.value.shape, x.most + 1 - x.least
    wide = call.step("positions", (*shape, 1), "reshape", [x.value])
    numbers = torch.arange(x.least, x.most + 1, dtype=torch.float32)
    rows = Value(f"{call.name} numbers", (count,), numbers)
    apart = call.step("apart", (*shape, count), "binary", [wide, rows], kind="subtract")
    far = call.step("far", (*shape, count), "unary", [apart], kind="abs")
    one = Value(f"{call.name} one", (), torch.ones(()))
    near = call.step("near", (*shape, count), "binary", [one, far], kind="subtract")
    zero = Value(f"{call.name} zero", (), torch.zeros(()))
    chosen = call.step("chosen", (*shape, count), "binary", [near, zero], kind="maximum")
    return call.add("linear", [chosen, _transposed(table, x.least, count), None])


def _transposed(table: Value, first: int, count: int) -> Value:
    whole: Tensor | None = table.constant
    assert whole is not None
    part = whole[first : first + count].t().contiguous()
    return Value(f"{table.name} of positions", tuple(part.shape), part)
