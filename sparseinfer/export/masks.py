"""Masks that a model computes from an input: which of two numbers each of their elements is.

Models make the mask of their attention from ids of zeros and ones, or from booleans, by a dozen
small operators. Whatever these are, each element of the result depends on one element of the
input alone, and on no more of it than whether it is zero, or some other number that the model
compares it with, such as the id of padding. So what they do is done here, with torch,
to three tensors: which element that is, and what comes of it in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.expand import expanded
from sparseinfer.export.lowering.table import LOWERINGS, Call, Refusal

__all__ = ["LEAST", "Choice", "chosen", "is_causal", "lower_mask", "materialised", "narrowed"]

aten = torch.ops.aten

ELEMENTWISE = (
    aten._to_copy.default, aten.where.self, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor,
    aten.bitwise_and.Scalar, aten.bitwise_or.Scalar,
    aten.bitwise_not.default, aten.logical_and.default, aten.logical_or.default,
    aten.logical_not.default, aten.eq.Scalar, aten.ne.Scalar, aten.eq.Tensor, aten.add.Tensor,
    aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor, aten.masked_fill.Scalar,
    aten.full_like.default, aten.gt.Tensor, aten.ge.Tensor, aten.lt.Tensor, aten.le.Tensor,
)  # fmt: skip
"""Operators whose results depend, element by element, on their operands."""

MOVES = (
    aten.view.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims,
    aten.permute.default, aten.slice.Tensor, aten.select.int, aten.clone.default,
    aten.index.Tensor,
)  # fmt: skip
"""Operators that give elements of their first operand as they are."""

LEAST = torch.finfo(torch.float32).min
"""What hides a score as well as -Inf does, where others are not hidden."""

EXACT = (aten._to_copy.default, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor)
"""What begins a mask as a number, so that it is promised to be 0 or 1: the engine looks."""


PARTS = (aten.expand.default, aten.slice.Tensor, aten.select.int, aten.index.Tensor)
"""What no node does to integers, so that they are a mask, and 0 or 1 likewise."""


@dataclass(eq=False)
class Choice:
    """A tensor whose elements are chosen from two, by whether an element of `source` is `number`.

    `if_zero` is chosen where it is, as for the most part with zero. `index` tells which element
    that is, of the flat source. `exact`: the source holds 0 and 1 and nothing else, or else what
    was computed of it is wrong.

    Example:
        >>> mask = Value("mask", (2,), dtype=torch.bool)
        >>> chosen(aten.bitwise_not.default, (mask,), {}).if_zero
        tensor([True, True])
    """

    source: Value
    index: Tensor
    if_zero: Tensor
    otherwise: Tensor
    exact: bool = False
    number: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.if_zero.shape)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.index, self.if_zero, self.otherwise


def chosen(target: Any, args: Any, kwargs: Any) -> Choice | None:
    """What an operator gives of such a tensor, or of the input that it begins with.

    None where it reads none, or ids that it may do anything with, or joins one with what is
    computed otherwise.

    Raises:
        Refusal: it reads two that do not fit, or no operator reads what it reads.
    """
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Choice | Value)]
    choices = [leaf for leaf in leaves if isinstance(leaf, Choice)]
    choices += [
        begun
        for leaf in leaves
        if isinstance(leaf, Value) and (begun := _begun(leaf, target, args, kwargs)) is not None
    ]
    if not choices:
        return None
    others = [leaf for leaf in leaves if isinstance(leaf, Value) and leaf.constant is None]
    joins = any(_begun(value, target, args, kwargs) is None for value in others)
    if joins or target not in (*ELEMENTWISE, *MOVES):
        if target in LOWERINGS:
            return None
        raise Refusal("it reads a mask, and nothing computes it of that")
    if len({(choice.source, choice.number) for choice in choices}) > 1:
        raise Refusal("it joins masks of two inputs")
    number = choices[0].number
    source, exact = choices[0].source, any(choice.exact for choice in choices)

    def with_tensors(which: int) -> Any:
        def plain(part: Any) -> Any:
            if isinstance(part, Value) and part.constant is None:
                part = _begun(part, target, args, kwargs)
            if isinstance(part, Choice):
                return part.tensors[which]
            return part.constant if isinstance(part, Value) else part

        return target(*tree_map(plain, args), **tree_map(plain, kwargs))

    if target in MOVES:
        return Choice(source, with_tensors(0), with_tensors(1), with_tensors(2), exact, number)
    if_zero, otherwise = with_tensors(1), with_tensors(2)
    indices = [choice.index.expand(if_zero.shape) for choice in choices]
    if any(not torch.equal(index, indices[0]) for index in indices):
        raise Refusal("it joins different elements of a mask")
    return Choice(source, indices[0], if_zero, otherwise, exact, number)


def _begun(value: Value, target: Any, args: Any, kwargs: Any) -> Choice | None:
    """An input as a choice, where the operator is one that makes a mask of it."""
    if value.constant is not None or value.dtype not in (torch.int64, torch.bool):
        return None
    index = torch.arange(torch.Size(value.shape).numel()).view(value.shape)
    zeros = torch.zeros(value.shape, dtype=value.dtype)
    ones = torch.ones(value.shape, dtype=value.dtype)
    if value.dtype == torch.bool:
        return None if target == aten.view.default else Choice(value, index, zeros, ones)
    compares = target in (aten.eq.Scalar, aten.ne.Scalar) and isinstance(args[1], int)
    if compares and (args[1] == 0 or value.rows):
        number = torch.full(value.shape, args[1], dtype=value.dtype)
        return Choice(value, index, number, number + 1, number=args[1])
    if kwargs.get("dtype") == torch.bool:
        return Choice(value, index, zeros, ones)
    if target not in EXACT and not (target in PARTS and args[0] is value):
        return None
    return Choice(value, index, zeros, ones, exact=True)


def lower_mask(call: Call, mask: Choice | Value, shape: tuple[int, ...]) -> Value | None:
    """The mask of an attention as what is added to its scores, of four dimensions; None for none.

    `shape` is that of the scores: batch, heads, queries, keys. Dimensions along which all is the
    same have one element, but for the keys.

    Raises:
        Refusal: it depends on its input in a way that no `where` computes.
    """
    if isinstance(mask, Choice):
        if_zero, otherwise = (_added(x, shape) for x in (mask.if_zero, mask.otherwise))
        if torch.equal(if_zero, otherwise):
            return _constant(call, if_zero)
        index = mask.index.view((1,) * (4 - mask.index.dim()) + tuple(mask.index.shape))
        narrow = [narrowed(part, 4) for part in (index, if_zero, otherwise)]
        if all(part.shape[3] != shape[3] for part in narrow):
            narrow[2] = otherwise  # one of them has to be as wide as the mask
        return _where(call, mask, *narrow)
    if mask.constant is not None:
        return _constant(call, _added(mask.constant, shape))
    if mask.dtype == torch.bool:
        begun = chosen(aten.clone.default, (mask,), {})
        assert begun is not None
        return lower_mask(call, begun, shape)
    dims = (1,) * (4 - len(mask.shape)) + mask.shape
    if dims[3] != shape[3]:
        raise Refusal(f"its mask is {list(mask.shape)}, and one that has all keys is taken")
    if mask.shape == dims:
        return mask
    output = Value(f"{call.name} mask", dims)
    return call.node("reshape", [mask], output)


def _added(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What is added to scores, as small as it can be."""
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -torch.inf)
    mask = mask.float().view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return narrowed(mask.expand(*mask.shape[:3], shape[3]), 3)


def narrowed(x: Tensor, axes: int) -> Tensor:
    """One element of the first axes along which all are the same.

    Example:
        >>> narrowed(torch.tensor([[0, 1], [0, 1]]), 1)
        tensor([[0, 1]])
    """
    for axis in range(axes):
        first = x.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(x), x):
            x = first
    return x


def is_causal(mask: Tensor) -> bool:
    """Whether it hides from each query what comes after it, and nothing else.

    Example:
        >>> is_causal(torch.full((1, 1, 3, 3), -torch.inf).triu(1))
        True
    """
    if mask.dim() != 4 or mask.shape[:2] != (1, 1):
        return False
    hidden = torch.where(mask <= LEAST, -torch.inf, mask)
    return torch.equal(hidden, torch.full_like(mask, -torch.inf).triu(1))


def _constant(call: Call, mask: Tensor) -> Value | None:
    if not mask.any():
        return None
    return Value(f"{call.name} mask", tuple(mask.shape), mask.contiguous())


def materialised(call: Call, mask: Choice, narrow: bool = False) -> Value:
    """The numbers of a mask, for an operator that reads them as any other tensor.

    `narrow`: it broadcasts, so dimensions along which all is the same may have one element.

    Raises:
        Refusal: it holds no float32, or no `where` computes it.
    """
    if mask.if_zero.dtype != torch.float32:
        raise Refusal(f"it reads a mask of {mask.if_zero.dtype}, and float32 is taken")
    shape = mask.shape
    if torch.equal(mask.if_zero, mask.otherwise):
        return Value(f"{call.name} mask", shape, mask.if_zero.contiguous())
    index, if_zero, otherwise = (narrowed(part, len(shape)) for part in mask.tensors)
    found = _where(call, mask, index, if_zero, otherwise)
    return found if narrow or found.shape == shape else expanded(call, found, shape)


def _where(call: Call, mask: Choice, index: Tensor, if_zero: Tensor, otherwise: Tensor) -> Value:
    """A node that broadcasts all three together."""
    if not torch.equal(index.reshape(-1), torch.arange(index.numel())):
        raise Refusal("its mask takes elements of its input out of their order")
    if torch.Size(mask.source.shape).numel() != index.numel():
        raise Refusal("its mask takes some elements of its input")
    if mask.number != 0:
        return _looked_up(call, mask, index, if_zero, otherwise)
    shape = torch.broadcast_shapes(index.shape, if_zero.shape, otherwise.shape)
    condition = Value(f"{mask.source.name} of {call.name}", tuple(index.shape), None,
                      mask.source.dtype)  # fmt: skip
    call.node("reshape", [mask.source], condition)
    values: list[Value | None] = [condition]
    for name, part in (("otherwise", otherwise), ("if zero", if_zero)):
        values.append(Value(f"{call.name} {name}", tuple(part.shape), part.contiguous()))
    output = Value(f"{call.name} mask", tuple(shape))
    return call.node("where", values, output, exact=mask.exact)


def _looked_up(
    call: Call, mask: Choice, index: Tensor, if_number: Tensor, otherwise: Tensor
) -> Value:
    """A row of one element for each id."""
    if if_number.unique().numel() != 1 or otherwise.unique().numel() != 1:
        raise Refusal(f"its mask chooses by ids of {mask.number} between more than two numbers")
    shown = otherwise.reshape(-1)[:1]
    rows = shown.repeat(mask.source.rows)
    if 0 <= mask.number < len(rows):
        rows[mask.number] = if_number.reshape(-1)[0]
    table = Value(f"{call.name} rows", (len(rows), 1), rows[:, None].contiguous())
    found = call.step("of ids", (*mask.source.shape, 1), "embedding", [mask.source, table])
    return call.step("mask", tuple(index.shape), "reshape", [found])
