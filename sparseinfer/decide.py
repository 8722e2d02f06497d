"""Decides whether a layer runs sparse: packs the candidates, times them, takes the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparseinfer import cost, registry
from sparseinfer.kinds import kind_named
from sparseinfer.measure import Comparison, compare
from sparseinfer.modules import SparseLayer
from sparseinfer.observe import Input, Observation
from sparseinfer.report import Candidate, LayerReport, describe
from sparseinfer.scan import Layer
from sparseinfer.weights import build_dense, effective

__all__ = ["Decider"]

_DEFAULT_FORMATS = {"cpu": ("panel", "csr"), "cuda": ("nm",)}
"""By device. On the CPU, csr is only for what panel cannot store (K > 65535)."""

LAYER_BUDGET_S = 0.3
"""Seconds to measure one format of a layer: a ResNet-50 then converts in well under a minute."""

MOST_INPUTS = 4
"""Distinct inputs of a layer that are measured: those with the most elements over all calls."""

DENSITY_STEP = 0.02
"""Layers alike but for less than this much density share a measurement."""


@dataclass
class Decider:
    """The settings of one conversion, and the measurements that its layers share.

    `observation` is None where no example inputs were given: the cost model then decides.
    """

    min_speedup: float
    threads: int
    formats: Sequence[str] | None
    observation: Observation | None
    _measured: dict[tuple[object, ...], Comparison] = field(default_factory=dict)

    def decide(self, layer: Layer) -> tuple[SparseLayer | None, LayerReport]:
        """The sparse replacement of `layer`, None where it stays dense, and the reason."""
        result = describe(layer, reason=self._untried(layer))
        if result.reason:
            return None, result
        dense = build_dense(layer.module, layer.weight(), effective(layer.module, "bias")).eval()
        best: tuple[Candidate, SparseLayer] | None = None
        for name in self.formats or _DEFAULT_FORMATS[layer.device.type]:
            candidate, sparse = _pack(layer, dense, name)
            result.candidates.append(candidate)
            if sparse is None:
                continue
            self._time(layer, dense, sparse, candidate, result)
            if best is None or (candidate.speedup or 0.0) > (best[0].speedup or 0.0):
                best = candidate, sparse
            if self.formats is None:
                break
        if best is None:
            result.reason = "; ".join(
                f"{tried.format}: {tried.reason}" for tried in result.candidates
            )
            return None, result
        return self._choose(layer, *best, result)

    def _untried(self, layer: Layer) -> str:
        """Why no candidate is worth packing; empty where some are."""
        if layer.blocked:
            return layer.blocked
        if layer.device.type not in _DEFAULT_FORMATS:
            return f"its weight is on {layer.device.type}, where no kernel runs"
        if layer.device.type == "cpu" and layer.dtype is not torch.float32:
            return f"its weight is {_name(layer.dtype)}, and the CPU kernels compute in float32"
        if self.observation is not None:
            met = {given.dtype for given in self.observation.inputs[layer.module]}
            if met - {layer.dtype}:
                names = ", ".join(sorted(_name(dtype) for dtype in met))
                return f"its inputs are {names}, and its weight is {_name(layer.dtype)}"
        if layer.nnz == layer.numel and self.min_speedup > 0 and self.formats is None:
            return "it has no zeros"
        return ""

    def _choose(
        self, layer: Layer, candidate: Candidate, sparse: SparseLayer, result: LayerReport
    ) -> tuple[SparseLayer | None, LayerReport]:
        result.packed_bytes = candidate.packed_bytes
        result.dense_ms, result.sparse_ms = candidate.dense_ms, candidate.sparse_ms
        result.speedup, result.low, result.high = candidate.speedup, candidate.low, candidate.high
        if candidate.speedup is None:
            result.reason = candidate.reason
        else:
            relation = "at least" if candidate.speedup >= self.min_speedup else "less than"
            result.reason = (
                f"{result.timing} {candidate.speedup:.2f}x, {relation} "
                f"the {self.min_speedup:g}x asked"
            )
        if layer.nonfinite:
            result.reason += f"; {layer.nonfinite} NaN or Inf weights, kept"
        if (candidate.speedup or 0.0) < self.min_speedup:
            return None, result
        result.format = candidate.format
        return sparse, result

    def _time(
        self, layer: Layer, dense: nn.Module, sparse: SparseLayer, candidate: Candidate,
        result: LayerReport,
    ) -> None:  # fmt: skip
        if self.observation is not None:
            met = self.observation.inputs[layer.module]
            if met:
                self._measure(layer, dense, sparse, candidate, result, met)
            else:
                candidate.reason = "the example inputs never reach it, so it could not be measured"
        elif layer.device.type == "cpu":
            self._model(layer, candidate, result)
        else:
            candidate.reason = (
                f"there is no cost model for {layer.device.type}: pass example_inputs"
            )

    def _measure(
        self, layer: Layer, dense: nn.Module, sparse: SparseLayer, candidate: Candidate,
        result: LayerReport, met: Counter[Input],
    ) -> None:  # fmt: skip
        """Weigh inputs by how often they came: times are of one forward pass of the model."""
        assert self.observation is not None
        work = {given: torch.Size(given.shape).numel() * calls for given, calls in met.items()}
        chosen = sorted(work, key=lambda given: -work[given])[:MOST_INPUTS]
        totals = {"dense": 0.0, "sparse": 0.0, "slowest": 0.0, "fastest": 0.0}
        for given in chosen:
            seen = self._compare(layer, dense, sparse, candidate.format, given)
            calls = met[given] / self.observation.passes
            totals["dense"] += calls * seen.dense_ms
            totals["sparse"] += calls * seen.dense_ms / seen.speedup
            totals["slowest"] += calls * seen.dense_ms / seen.low
            totals["fastest"] += calls * seen.dense_ms / seen.high
        candidate.dense_ms, candidate.sparse_ms = totals["dense"], totals["sparse"]
        candidate.speedup = totals["dense"] / totals["sparse"]
        candidate.low = totals["dense"] / totals["slowest"]
        candidate.high = totals["dense"] / totals["fastest"]
        result.timing = "measured"
        result.N = [_tokens(dense, given, layer) for given in chosen]
        result.inputs = ", ".join(_times(given, met[given]) for given in chosen)
        if len(met) > len(chosen):
            result.inputs += f", the {len(chosen)} largest of {len(met)}"

    def _compare(
        self, layer: Layer, dense: nn.Module, sparse: SparseLayer, name: str, given: Input
    ) -> Comparison:
        geometry = dense.extra_repr()
        steps = round(layer.density / DENSITY_STEP)
        key = (layer.kind, geometry, str(layer.device), given, name, steps, str(layer.pattern))
        if key not in self._measured:
            x = given.make(layer.device)
            on_cuda = layer.device.type == "cuda"
            self._measured[key] = compare(
                lambda: dense(x),
                lambda: sparse(x),
                budget_s=LAYER_BUDGET_S,
                threshold=self.min_speedup,
                synchronize=torch.cuda.synchronize if on_cuda else lambda: None,
            )
        return self._measured[key]

    def _model(self, layer: Layer, candidate: Candidate, result: LayerReport) -> None:
        rows, columns = layer.shape[0], layer.numel // layer.shape[0]
        guess = cost.worst_estimate(
            layer.kind, rows, columns, layer.density, self.threads, candidate.format
        )
        candidate.dense_ms, candidate.sparse_ms = guess.dense_ms, guess.sparse_ms
        candidate.speedup = guess.speedup
        result.timing = "modelled"
        result.N = [guess.N]
        result.inputs = f"N={guess.N}, assumed"


def _pack(layer: Layer, dense: nn.Module, name: str) -> tuple[Candidate, SparseLayer | None]:
    params: dict[str, Any] = {}
    if name == "nm" and layer.pattern is not None and layer.pattern.kind == "n:m":
        params = dict(zip(("n", "m"), layer.pattern.sizes, strict=True))
    kind = kind_named(layer.kind)
    try:
        registry.select(registry.Problem(kind.op, name, layer.device, layer.dtype, **params))
        sparse = kind.sparse.from_dense(dense, name, **params).eval()
    except (RuntimeError, TypeError, ValueError) as refusal:
        return Candidate(name, reason=str(refusal).splitlines()[0]), None
    return Candidate(name, packed_bytes=sparse.packed.numel()), sparse


def _tokens(dense: nn.Module, given: Input, layer: Layer) -> int:
    """N of an input: tokens of a linear layer, output pixels of a convolution."""
    shape_only = build_dense(
        dense, torch.empty(layer.shape, dtype=layer.dtype, device="meta"), None
    )
    x = torch.empty(given.shape, dtype=given.dtype, device="meta")
    return shape_only(x).numel() // layer.shape[0]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _times(given: Input, calls: int) -> str:
    return str(given) if calls == 1 else f"{given} ({calls} calls)"
