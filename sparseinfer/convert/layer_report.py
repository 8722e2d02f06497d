"""What was decided for a layer, with the numbers behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sparseinfer.convert.scan import Layer
from sparseinfer.formats.patterns import detect_pattern
from sparseinfer.layers.base import SparseLayer
from sparseinfer.layers.dense import by_outputs
from sparseinfer.layers.kinds import packed_layers

__all__ = ["DENSE", "TORCH", "Candidate", "LayerReport", "describe", "describe_sparse"]

DENSE = "dense"
"""The format of a layer that was left alone."""

TORCH = "torch"
"""The format of a layer whose packed int8 weight torch's dense kernel multiplies."""


@dataclass
class Candidate:
    """A format tried for a layer: milliseconds a forward pass, bytes, or why it cannot be.

    `speedup` is dense over sparse, within `low` to `high` (see `sparseinfer.timing.measure`) where
    it was measured. `params` is what the weight was packed with, and `doubt` why the figures are
    not believed; empty where they are.
    """

    format: str
    packed_bytes: int = 0
    dense_ms: float | None = None
    sparse_ms: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    doubt: str = ""

    @property
    def is_narrow(self) -> bool:
        """Whether it rounds activations."""
        return "activations" in self.params

    @property
    def type(self) -> str:
        """The type of its values."""
        return str(self.params.get("weights", "float32"))

    @property
    def certain(self) -> float:
        """The speed-up to rely on: the lower bound, the model's guess, or 0 where there is none.

        A gain that is not believed is none.
        """
        found = self.low or self.speedup or 0.0
        return min(1.0, found) if self.doubt else found


@dataclass
class LayerReport:
    """One layer: its weight, the format chosen, and milliseconds a forward pass of the model.

    `format` is `dense` where the layer was left alone, `torch` where torch's dense int8 kernel
    multiplies its packed weight, and `reason` says why it is so in either
    case. `timing` is `measured`, `modelled` or empty; `inputs` says at which inputs and `N` at how
    many tokens or pixels. `dense_ms`, `sparse_ms`, `speedup`, `low`, `high` and `params` are those
    of the best candidate. `occupancy` tells which rows, channels and panels hold non-zeros.
    `weights` and `activations` are the types that a sparse layer multiplies, and `wider` says why
    they are wider than asked. `sqnr_db` is the signal of a narrow layer's output over its error in
    decibels, and `over` the time of each rival (`sparseinfer.convert.rivals`) over its own.
    """

    name: str
    kind: str
    shape: list[int]
    nnz: int
    sparsity: float
    pattern: str
    format: str
    dense_bytes: int
    packed_bytes: int
    reason: str
    aliases: list[str] = field(default_factory=list)
    nonfinite: int = 0
    timing: str = ""
    inputs: str = ""
    N: list[int] = field(default_factory=list)
    dense_ms: float | None = None
    sparse_ms: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    candidates: list[Candidate] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    occupancy: str = ""
    weights: str = "float32"
    activations: str = "float32"
    wider: str = ""
    sqnr_db: float | None = None
    over: dict[str, float] = field(default_factory=dict)

    @property
    def is_sparse(self) -> bool:
        """Whether a layer with a packed weight took its place."""
        return self.format != DENSE

    @property
    def bytes(self) -> int:
        """Bytes of the weight as it is kept now."""
        return self.packed_bytes if self.is_sparse else self.dense_bytes

    @property
    def ms(self) -> float | None:
        """Milliseconds as the layer runs now."""
        return self.sparse_ms if self.is_sparse else self.dense_ms


def describe(layer: Layer, reason: str) -> LayerReport:
    """The report of a layer that stays dense, before any timing."""
    return LayerReport(
        name=layer.name,
        aliases=layer.names[1:],
        kind=layer.kind,
        shape=list(layer.shape),
        nnz=layer.nnz,
        sparsity=1.0 - layer.density if layer.numel else 0.0,
        pattern=str(layer.pattern) if layer.pattern else "unreadable",
        nonfinite=layer.nonfinite,
        format=DENSE,
        dense_bytes=layer.numel * layer.dtype.itemsize,
        packed_bytes=0,
        reason=reason,
    )


def describe_sparse(model: nn.Module) -> list[LayerReport]:
    """The report of the layers of a model that are sparse already."""
    names: dict[SparseLayer, list[str]] = {}
    for name, module in packed_layers(model):
        names.setdefault(module, []).append(name)
    layers = []
    for module, found in names.items():
        shape = list(module.weight_shape)
        numel = math.prod(shape)
        layers.append(
            LayerReport(
                name=found[0],
                aliases=found[1:],
                kind=type(module).dense_type.__name__.lower(),
                shape=shape,
                nnz=module.nnz,
                sparsity=1.0 - module.nnz / numel,
                pattern=str(detect_pattern(by_outputs(module, module.dense_weight()))),
                format=TORCH if module.runs_dense else module.format,
                dense_bytes=4 * numel,
                packed_bytes=module.packed.numel(),
                reason="it was sparse already",
                weights=module.handle.info["value_type"],
                activations=module.handle.activations,
            )
        )
    return layers
