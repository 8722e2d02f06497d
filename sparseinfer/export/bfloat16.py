"""An engine of bfloat16 from a float32 graph, and how far it may be from the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseinfer.convert.replace import replace
from sparseinfer.export.engine import Engine
from sparseinfer.export.file import write_graph
from sparseinfer.export.graph import Graph, copied
from sparseinfer.export.passes.bfloat16 import narrow_values, round_attention
from sparseinfer.export.signature import Signature, tensors_of
from sparseinfer.quantize.scheme import Scheme

__all__ = ["LEAST", "MORE", "bfloat16_engine", "bfloat16_error"]

MORE = 4
"""Times the error may be that rounding the weights and the inputs makes: what stands between layers
is rounded as well, and a folded batch norm scales weights before they are."""

LEAST = 2.0**-7
"""Of the largest output: an error that is allowed also where the model happens to round well."""


def bfloat16_engine(
    graph: Graph, signature: Signature, scheme: Scheme, threads: int, target: str | None = None
) -> Engine:
    """The engine of an optimised graph, which stays as it is, with weights of bfloat16."""
    graph = copied(graph)
    if scheme.rounds:
        narrow_values(graph)
        round_attention(graph)
    return Engine(write_graph(graph, signature.to_json(), target, scheme), threads)


def bfloat16_error(
    model: nn.Module, engine: Engine, args: Any, kwargs: Any, exact: Sequence[Tensor]
) -> str:
    """Hold the outputs against those of the model in float64, `exact`, and say how close they are.

    Raises:
        RuntimeError: they differ by more than rounding to bfloat16 explains.
    """
    given = tensors_of(engine(*args, **kwargs))
    rough = _rounded_model(model)(*tree_map(_rounded, args), **tree_map(_rounded, kwargs))
    worst = own = 0.0
    for y, other, true in zip(given, tensors_of(rough), exact, strict=True):
        error, rounding = (float((each.double() - true).abs().max()) for each in (y, other))
        allowed = MORE * rounding + LEAST * float(true.abs().max())
        if not error <= allowed:
            raise RuntimeError(
                f"expected outputs of bfloat16 within {allowed:.3g} of the model in float64, got "
                f"{error:.3g}; this is a fault of the export: please report it; try "
                "weights='float32'"
            )
        worst, own = max(worst, error), max(own, rounding)
    return (
        f"outputs of bfloat16 within {worst:.2g} of the model in float64; rounding its weights and "
        f"inputs alone makes {own:.2g}"
    )


def _rounded_model(model: nn.Module) -> nn.Module:
    """The model in float64, with its weights rounded to bfloat16."""
    rounded = replace(model, {}).double()
    for parameter in rounded.parameters():
        if parameter.dim() > 1:
            parameter.copy_(_rounded(parameter))
    return rounded


def _rounded(part: Any) -> Any:
    if not isinstance(part, Tensor) or not part.is_floating_point():
        return part
    return part.to(torch.bfloat16).double()
