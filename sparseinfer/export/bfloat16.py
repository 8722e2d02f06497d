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

__all__ = [
    "LEAST", "MORE", "bfloat16_engine", "bfloat16_error", "rounded", "rounding_error",
]  # fmt: skip

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
    rough = _rounded_model(model)(*tree_map(rounded, args), **tree_map(rounded, kwargs))
    given = tensors_of(engine(*args, **kwargs))
    return rounding_error(given, tensors_of(rough), exact, "the model in float64")


def rounding_error(
    given: Sequence[Tensor], rough: Sequence[Tensor], exact: Sequence[Tensor], name: str
) -> str:
    """Hold outputs against exact ones, and those of rounded weights and inputs, `rough`.

    Raises:
        RuntimeError: they differ by more than rounding to bfloat16 explains.

    Example:
        >>> one = torch.ones(2)
        >>> rounding_error([one], [one], [one], "it")
        'outputs of bfloat16 within 0 of it; rounding its weights and inputs alone makes 0'
    """
    worst = own = 0.0
    for y, other, true in zip(given, rough, exact, strict=True):
        error, rounding = (float((each.double() - true).abs().max()) for each in (y, other))
        allowed = MORE * rounding + LEAST * float(true.abs().max())
        if not error <= allowed:
            raise RuntimeError(
                f"expected outputs of bfloat16 within {allowed:.3g} of {name}, got "
                f"{error:.3g}; this is a fault of the export: please report it; try "
                "weights='float32'"
            )
        worst, own = max(worst, error), max(own, rounding)
    return (
        f"outputs of bfloat16 within {worst:.2g} of {name}; rounding its weights and "
        f"inputs alone makes {own:.2g}"
    )


def _rounded_model(model: nn.Module) -> nn.Module:
    """The model in float64, with its weights rounded to bfloat16."""
    copied = replace(model, {}).double()
    for parameter in copied.parameters():
        if parameter.dim() > 1:
            parameter.copy_(rounded(parameter))
    return copied


def rounded(part: Any) -> Any:
    """A float tensor rounded to bfloat16, in float64; anything else as it is.

    Example:
        >>> rounded(torch.tensor([1.0, 1.001]))
        tensor([1., 1.], dtype=torch.float64)
    """
    if not isinstance(part, Tensor) or not part.is_floating_point():
        return part
    return part.to(torch.bfloat16).double()
