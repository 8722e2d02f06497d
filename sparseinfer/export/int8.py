"""An engine of int8 from a float32 graph: what is calibrated, and how close the two are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparseinfer.export.calibration import calibration_batches, observed_scales
from sparseinfer.export.engine import Engine
from sparseinfer.export.file import write_graph
from sparseinfer.export.graph import Graph, copied
from sparseinfer.export.passes.bfloat16 import round_attention
from sparseinfer.export.passes.byte_nodes import split_activations
from sparseinfer.export.passes.quantize import (
    quantize,
    values_to_observe,
    waits_for_its_activation,
)
from sparseinfer.export.signature import Signature, tensors_of
from sparseinfer.quantize.error import sqnr_db
from sparseinfer.quantize.scheme import Scheme, scheme_for

__all__ = ["engine_scheme", "int8_engine"]


def engine_scheme(weights: str, activations: str | None, calibration: Any) -> Scheme:
    """The types of an engine by their words.

    Raises:
        ValueError: a word is unknown, or there is calibration data where nothing is rounded, or
            none where something is.
        NotImplementedError: engines of these types are not built yet.

    Example:
        >>> str(engine_scheme("float32", None, None))
        "weights='float32', activations='float32'"
    """
    scheme = scheme_for(weights, activations)
    if scheme.quantizes and calibration is None:
        raise ValueError(
            f"expected calibration data for {scheme}, got none; try calibration=loader, a few "
            "hundred samples of the training data"
        )
    if not scheme.quantizes and calibration is not None:
        raise ValueError(
            f"expected no calibration data for {scheme}, which rounds no activations, got some; "
            "try weights='int8'"
        )
    return scheme


def int8_engine(
    graph: Graph, signature: Signature, exact: Engine, calibration: Any, target: str | None = None
) -> tuple[Engine, str]:
    """The int8 engine of an optimised graph, which stays as it is, and how it compares with the
    float32 engine `exact` on the calibration data.

    Raises:
        TypeError, ValueError: see `calibration_batches`; a weight or a value cannot be scaled.
        RuntimeError: the int8 engine gives something that is not finite.
    """
    batches = calibration_batches(calibration, graph, signature)
    graph = copied(graph)
    split_activations(graph, waits_for_its_activation)
    values = values_to_observe(graph)
    quantize(graph, observed_scales(graph, values, batches, signature, exact.threads))
    round_attention(graph)
    engine = Engine(write_graph(graph, signature.to_json(), target), exact.threads)
    return engine, agreement(exact, engine, batches, signature)


def agreement(
    exact: Engine, engine: Engine, batches: Sequence[Sequence[Tensor]], signature: Signature
) -> str:
    """How close the outputs of two engines are on these inputs, in words."""
    known: list[Tensor] = []
    found: list[Tensor] = []
    for batch in batches:
        named = dict(zip(signature.tensors, batch, strict=True)) | signature.fixed
        known += tensors_of(exact(**named))
        found += tensors_of(engine(**named))
    if not all(torch.isfinite(y).all() for y in found):
        raise RuntimeError(
            "expected finite outputs of the int8 engine, got NaN or Inf; this is a fault of the "
            "export: please report it; try weights='float32'"
        )
    every = [torch.cat([y.reshape(-1) for y in side]) for side in (known, found)]
    text = f"outputs of int8 within {sqnr_db(*every):.1f} dB (SQNR) of the float32 engine's"
    rows = [(a, b) for a, b in zip(known, found, strict=True) if a.dim() == 2 and a.shape[1] > 1]
    if rows:
        same = torch.cat([a.argmax(1) == b.argmax(1) for a, b in rows])
        text += f", the same largest output in {int(same.sum())} of {len(same)} rows"
    return text
