"""One ATen operator in the graph, whichever front end calls it: constant, a mask, or nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering import LOWERINGS, Call, Refusal
from sparseinfer.export.masks import Choice, chosen, materialised
from sparseinfer.export.positions import Positions, counted

__all__ = ["folded", "is_computed", "lower"]

aten = torch.ops.aten

INTEGERS_READ = (
    "embedding",
    "scaled_dot_product_attention",
    "view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "clone",
    "where",
)
"""Operators that take other types than float32: ids, and masks."""

MASKS_READ = (aten.scaled_dot_product_attention.default, aten.where.self)
"""Operators that look at what a mask chooses from; to others it is numbers."""


BROADCASTING = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default,
    aten.minimum.default,
)  # fmt: skip


def lower(target: Any, call: Call) -> Any:
    """What an operator gives, called so: a value, a mask, positions, or a tuple of values.

    Raises:
        Refusal: the engine has no such operation.

    Example:
        >>> from sparseinfer.export.graph import Graph
        >>> call = Call(Graph([], [], []), "y", "", [Value("x", (2,))], {}, (2,))
        >>> str(lower(aten.relu.default, call)), len(call.graph.nodes)
        ('y[2]', 1)
    """
    args, kwargs = call.args, call.kwargs
    if not tree_any(is_computed, (args, kwargs)):
        return folded(target, call)
    found = counted(target, call)
    if found is not None:
        return found
    if target != aten.scaled_dot_product_attention.default:
        mask = chosen(target, args, kwargs)
        if mask is not None:
            return mask
    lowering = LOWERINGS.get(target)
    if lowering is None:
        raise Refusal("no operator of the engine computes it")
    if target not in MASKS_READ:
        narrow = target in BROADCASTING and any(
            isinstance(part, Value) and part.shape == call.shape for part in args
        )
        args, kwargs = tree_map(
            lambda part: materialised(call, part, narrow) if isinstance(part, Choice) else part,
            (args, kwargs),
        )
        call = replace(call, args=args, kwargs=kwargs)
    _check_types(target, args, call.dtype)
    return lowering(call)


def folded(target: Any, call: Call) -> Any:
    """The value of a call that only constants go into."""

    def plain(part: Any) -> Any:
        return part.constant if isinstance(part, Value) else part

    def named(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        return Value(call.name, tuple(part.shape), part.contiguous(), part.dtype)

    args, kwargs = tree_map(plain, tuple(call.args)), tree_map(plain, call.kwargs)
    with torch.no_grad():
        return tree_map(named, target(*args, **kwargs))


def is_computed(part: Any) -> bool:
    """Whether an argument is known in a run alone."""
    return isinstance(part, Choice | Positions) or (
        isinstance(part, Value) and part.constant is None
    )


def _check_types(target: Any, args: Any, gives: torch.dtype) -> None:
    if str(target).split(".")[1] in INTEGERS_READ:
        return
    if gives != torch.float32:
        raise Refusal(f"it gives {gives}, and float32 is taken")

    def check(part: Any) -> None:
        if isinstance(part, Value) and part.dtype != torch.float32:
            raise Refusal(f"expected float32, got {part.dtype} of {part.name}; try model.float()")

    tree_map(check, args)
