"""Decides whether a layer runs sparse: packs the candidates, times them, takes the best."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from sparseinfer.convert.candidates import formats_for, pack_params
from sparseinfer.convert.layer_report import Candidate, LayerReport, describe
from sparseinfer.convert.narrow import Narrow, decide_narrow
from sparseinfer.convert.observe import Input, Observation
from sparseinfer.convert.occupancy import bucket, occupancy
from sparseinfer.convert.platform import Platform
from sparseinfer.convert.plausible import Side, beyond_zeros
from sparseinfer.convert.reasons import memory_choice, overhead_reason
from sparseinfer.convert.replace import Replacement
from sparseinfer.convert.scan import Layer, brief
from sparseinfer.convert.trial import pack_for, rotated
from sparseinfer.layers.dense import by_outputs
from sparseinfer.layers.kinds import kind_named
from sparseinfer.ops.run_linear import NARROW
from sparseinfer.timing import cost
from sparseinfer.timing.clock import BUSY
from sparseinfer.timing.machine import HOST
from sparseinfer.timing.measure import CONFIDENCE, Comparison, weigh
from sparseinfer.timing.rates import CONTENDERS
from sparseinfer.timing.rounds import Sample
from sparseinfer.timing.tuning import Tuner

__all__ = ["Decider"]

LAYER_BUDGET_S = 0.3
"""Seconds to measure one format of a layer: a ResNet-50 then converts in well under a minute."""

OVERHEAD_BUDGET_S = 0.1

MOST_INPUTS = 4
"""Distinct inputs of a layer that are measured: those with the most elements over all calls."""

SHORT_CALL_MS = 0.1
"""Only calls that take less are so short that their overhead can decide."""


@dataclass
class Decider:
    """The settings of one conversion, and the comparisons that its layers share.

    `observation` is None where no example inputs were given: the cost model then decides.
    `channels_last` compares with the dense layer in that memory format. `layers` is how many there
    are to decide, which share what time there is until `until` (of the tuner's clock). `generates`
    tells that the model will be called with one token at a time, whatever its example inputs.
    `weights` is the type of the panel format's values, and `narrow` what else is known where
    activations are rounded too. `target` is the machine that will run what is packed; for another
    than the host, `observation` is None. `timers` time the layers of each device; None, or none:
    the clock. `sides` are the dense sides of what was compared. `platform` tells of this machine.
    """

    min_speedup: float
    tuner: Tuner
    formats: Sequence[str] | None
    observation: Observation | None
    channels_last: bool = False
    layers: int = 1
    until: float = math.inf
    generates: bool = False
    weights: str = "float32"
    narrow: Narrow | None = None
    target: str = HOST
    timers: Mapping[torch.device, Sample | None] = field(default_factory=dict)
    sides: list[Side] = field(default_factory=list)
    platform: Platform = field(default_factory=Platform)

    @property
    def left_s(self) -> float:
        """Seconds until `until`; negative after it."""
        return self.until - self.tuner.clock.wall()

    def decide(self, layer: Layer) -> tuple[Replacement | None, LayerReport]:
        """The sparse replacement of `layer`, None where it stays dense, and the reason.

        An error in packing or timing it is such a reason.
        """
        self.layers = max(0, self.layers - 1)
        try:
            sparse, result = self._decide(layer)
        except Exception as error:
            return None, describe(layer, reason=f"it could not be measured: {brief(error)}")
        if result.wider:
            assert self.narrow is not None
            result.reason += f"; not {self.narrow.words}: {result.wider}"
        return sparse, result

    def _decide(self, layer: Layer) -> tuple[Replacement | None, LayerReport]:
        result = describe(layer, reason=self._untried(layer))
        if result.reason:
            return None, result
        dense = layer.dense().eval()
        if self.narrow is not None:
            narrow = decide_narrow(self, self.narrow, layer, dense, result)
            if narrow is not None:
                return narrow, result
            result.reason = self._without_zeros(layer)
            if result.reason:
                return None, result
        best: tuple[Candidate, Replacement] | None = None
        names, why_none = formats_for(layer, self.platform.kernels_of(layer.device))
        if not names and self.formats is None:
            result.reason = why_none
            return None, result
        result.occupancy = occupancy(by_outputs(layer.module, layer.weight()))
        met = self.tokens_met(layer)
        for name in self.formats or names:
            fewest = 0 if self.generates else min(met, default=0)
            params = pack_params(layer, name, fewest, self._weights(layer))
            if self.target != HOST:
                params["target"] = self.target
            candidate, sparse = pack_for(layer, dense, name, params, met, self.platform)
            result.candidates.append(candidate)
            if sparse is None:
                continue
            self.time(layer, dense, sparse, candidate, result)
            if best is None or candidate.certain > best[0].certain:
                best = candidate, sparse
            if self.formats is None and self.platform.kernels_of(layer.device) == "cpu":
                break
        if best is None:
            result.reason = "; ".join(
                f"{tried.format}: {tried.reason}" for tried in result.candidates
            )
            return None, result
        return self.choose(layer, *best, result)

    def _untried(self, layer: Layer) -> str:
        """Why no candidate is worth packing; empty where some are."""
        if layer.blocked:
            return layer.blocked
        kernels = self.platform.kernels_of(layer.device)
        if kernels not in kind_named(layer.kind).devices:
            return f"its weight is on {layer.device.type}, where no kernel runs"
        if kernels == "cpu" and layer.dtype not in (torch.float32, *NARROW):
            return f"its weight is {_name(layer.dtype)}, and the CPU kernels compute in float32"
        if self.observation is not None:
            met = {given.dtype for given in self.observation.inputs[layer.module]}
            if met - {layer.dtype, *_autocast_types(layer.device)}:
                names = ", ".join(sorted(_name(dtype) for dtype in met))
                return f"its inputs are {names}, and its weight is {_name(layer.dtype)}"
        return "" if self.narrow is not None else self._without_zeros(layer)

    def _without_zeros(self, layer: Layer) -> str:
        if layer.nnz == layer.numel and self.min_speedup > 0 and self.formats is None:
            return "it has no zeros"
        return ""

    def _weights(self, layer: Layer) -> str:
        """The type of panel's values: bfloat16 holds all there is in a weight of that type."""
        halves = self.weights == "bfloat16" or layer.dtype is torch.bfloat16
        return "bfloat16" if halves else "float32"

    def tokens_met(self, layer: Layer) -> set[int]:
        """Every N that a linear layer was seen with; none where that is not known."""
        if self.observation is None or layer.kind != "linear":
            return set()
        return {math.prod(given.shape[:-1]) for given in self.observation.inputs[layer.module]}

    def choose(
        self, layer: Layer, candidate: Candidate, sparse: Replacement, result: LayerReport
    ) -> tuple[Replacement | None, LayerReport]:
        """The best candidate's replacement where it gains enough, and the reason in the report."""
        result.packed_bytes, result.params = candidate.packed_bytes, candidate.params
        result.dense_ms, result.sparse_ms = candidate.dense_ms, candidate.sparse_ms
        result.speedup, result.low, result.high = candidate.speedup, candidate.low, candidate.high
        gains = candidate.certain >= self.min_speedup
        if candidate.speedup is None:
            result.reason = candidate.reason
        elif candidate.doubt:
            result.reason = (
                f"measured {candidate.speedup:.3g}x, which is not believed: {candidate.doubt}"
            )
        else:
            relation = "at least" if gains else "less than"
            # Two digits say enough, but where they would read "1.05x, less than the 1.05x asked".
            close = abs(candidate.certain - self.min_speedup) < 0.01
            digits = 4 if close else 2
            sure = f" ({CONFIDENCE} sure of {candidate.low:.{digits}f}x)" if candidate.low else ""
            result.reason = (
                f"{result.timing} {candidate.speedup:.{digits}f}x{sure}, {relation} "
                f"the {self.min_speedup:g}x asked"
            )
            if candidate.reason:
                result.reason += f": {candidate.reason}"
        if layer.nonfinite:
            result.reason += f"; {layer.nonfinite} NaN or Inf weights, kept"
        if not gains:
            if self.platform.kernels_of(layer.device) == "cuda":
                result.reason += memory_choice(layer, candidate, result.N)
            return None, result
        result.format = candidate.format
        result.weights = candidate.params.get("weights", "float32")
        return sparse, result

    def time(
        self, layer: Layer, dense: nn.Module, sparse: Replacement, candidate: Candidate,
        result: LayerReport,
    ) -> None:  # fmt: skip
        """Measure or model a candidate, as far as the example inputs allow."""
        if self.observation is not None:
            met = self.observation.inputs[layer.module]
            if met:
                self._measure(layer, dense, sparse, candidate, result, met)
            else:
                candidate.reason = "the example inputs never reach it, so it could not be measured"
        elif self.platform.kernels_of(layer.device) != "cpu":
            candidate.reason = (
                f"there is no cost model for {layer.device.type}: pass example_inputs"
            )
        elif candidate.is_narrow:
            candidate.reason = f"there is no cost model for {candidate.type}: pass example_inputs"
        elif not cost.has_rates(self.target):
            candidate.reason = (
                f"there is no cost model for {self.target}: convert on such a machine with "
                "example_inputs, or here with min_speedup=0"
            )
        elif candidate.format in CONTENDERS and layer.dtype is torch.float32:
            self._model(layer, candidate, result)
        else:
            unknown = candidate.format if layer.dtype is torch.float32 else _name(layer.dtype)
            candidate.reason = f"there is no cost model for {unknown}: pass example_inputs"

    def _measure(
        self, layer: Layer, dense: nn.Module, sparse: Replacement, candidate: Candidate,
        result: LayerReport, met: Counter[Input],
    ) -> None:  # fmt: skip
        """Weigh inputs by how often they came: times are of one forward pass of the model."""
        assert self.observation is not None
        work = {given: torch.Size(given.shape).numel() * calls for given, calls in met.items()}
        chosen = sorted(work, key=lambda given: -work[given])[:MOST_INPUTS]
        parts = []
        implausible = ""
        for given in chosen:
            seen = self._compare(
                layer, dense, sparse, candidate, result.occupancy, given, len(chosen)
            )
            if seen is None:
                candidate.reason = (
                    "the time to measure was spent before its turn; try a larger budget_s"
                )
                return
            parts.append((met[given] / self.observation.passes, seen))
            implausible = implausible or self._implausible(layer, dense, given, candidate, seen)
        total = weigh(parts)
        candidate.dense_ms, candidate.sparse_ms = total.dense_ms, total.sparse_ms
        candidate.speedup, candidate.low, candidate.high = total.speedup, total.low, total.high
        if implausible and self.tuner.watch.share > BUSY:
            candidate.doubt = (
                f"{implausible}, and others had the processor for {self.tuner.watch.share:.0%} of "
                "the time; try again when the machine is quiet"
            )
        calls = sum(calls for calls, _ in parts)
        if total.low < self.min_speedup and total.sparse_ms < SHORT_CALL_MS * calls:
            candidate.reason = self._overhead(layer, candidate, calls)
        result.timing = "measured"
        result.N = [kind_named(layer.kind).tokens(dense, given.shape) for given in chosen]
        result.inputs = ", ".join(_times(given, met[given]) for given in chosen)
        if len(met) > len(chosen):
            result.inputs += f", the {len(chosen)} largest of {len(met)}"

    def _implausible(
        self, layer: Layer, dense: nn.Module, given: Input, candidate: Candidate, found: Comparison
    ) -> str:
        """Why the zeros of a layer cannot account for what was found at one input."""
        tokens = kind_named(layer.kind).tokens(dense, given.shape)
        # There is no cost model for narrow types: beside them only the zeros tell what can be.
        format = candidate.type if candidate.is_narrow else candidate.format
        return beyond_zeros(found, layer, tokens, self.tuner.threads, format, layer.device)

    def _compare(
        self, layer: Layer, dense: nn.Module, sparse: Replacement, candidate: Candidate,
        occupied: str, given: Input, inputs: int,
    ) -> Comparison | None:  # fmt: skip
        """The comparison at one of `inputs` inputs; None where there is no time left for it."""
        density = bucket(layer.density)
        timer = self.timers.get(layer.device)
        name = candidate.format
        dense_side = {
            "layer": f"{layer.kind}({dense.extra_repr()})",
            "dtype": _name(layer.dtype),
            "strides": [parameter.stride() for parameter in dense.parameters()],
            "channels_last": self.channels_last,
            "input": {
                "shape": given.shape,
                "strides": given.strides,
                "dtype": _name(given.dtype),
            },
        }
        problem = {
            "label": f"{layer.kind} {'x'.join(map(str, layer.shape))} {name} {density:g}",
            **dense_side,
            "format": name,
            "params": dict(candidate.params),
            "density": density,
            "pattern": str(layer.pattern),
            "occupancy": occupied,
        }
        if self.platform.kernels_of(layer.device) == "cuda":
            problem["timed"] = getattr(timer, "name", "clock")
        left_s = self.left_s
        if left_s <= 0 and self.tuner.recall(problem) is None:
            return None

        def make() -> tuple[Callable[[], object], Callable[[], object]]:
            x = given.make(layer.device)
            if self.platform.kernels_of(layer.device) == "cuda":
                cache = self.platform.cache_bytes(layer.device)
                return rotated("dense", dense, x, cache), rotated(name, sparse, x, cache)
            if not (self.channels_last and len(layer.shape) == x.dim() == 4):
                return lambda: dense(x), lambda: sparse(x)
            moved = x.to(memory_format=torch.channels_last)
            other: Any = copy.deepcopy(dense)
            other.to(memory_format=torch.channels_last)
            return lambda: other(moved), lambda: sparse(x)

        share_s = left_s / (self.layers + 1) / inputs
        found = self.tuner.compare(
            problem, make, min(LAYER_BUDGET_S, share_s), sample=timer,
            implausible=partial(self._implausible, layer, dense, given, candidate),
        )  # fmt: skip
        self.sides.append(Side(layer, json.dumps(dense_side), problem, found.dense_ms))
        return found

    def _overhead(self, layer: Layer, candidate: Candidate, calls: float) -> str:
        """Why a layer loses whose arithmetic would gain; empty where that is not so."""
        kind = kind_named(layer.kind)
        if kind.empty_call is None or self.platform.kernels_of(layer.device) != "cpu":
            return ""
        if candidate.is_narrow:
            return ""
        build, shape = kind.empty_call

        def make() -> tuple[Callable[[], object], Callable[[], object]]:
            with torch.device("meta"):  # where no random number is drawn
                like: Any = build()
            weight = torch.zeros(like.weight.shape)  # which every format can store
            dense = kind.rebuild(like, weight, {"bias": torch.zeros(len(weight))}).eval()
            sparse = kind.sparse.from_dense(dense, candidate.format).eval()
            x = torch.zeros(shape)
            return lambda: dense(x), lambda: sparse(x)

        problem = {
            "label": f"call {layer.kind} {candidate.format}",
            "call": layer.kind,
            "format": candidate.format,
        }
        call = self.tuner.compare(problem, make, OVERHEAD_BUDGET_S)
        return overhead_reason(
            candidate, calls, call.dense_ms, call.sparse_ms, max(1.0, self.min_speedup)
        )

    def _model(self, layer: Layer, candidate: Candidate, result: LayerReport) -> None:
        guess = kind_named(layer.kind).worst_estimate(
            layer.rows, layer.columns, layer.density, self.tuner.threads, candidate.format,
            self.target,
        )  # fmt: skip
        candidate.dense_ms, candidate.sparse_ms = guess.dense_ms, guess.sparse_ms
        candidate.speedup = guess.speedup
        if guess.speedup < self.min_speedup:
            candidate.reason = overhead_reason(
                candidate, 1.0, guess.dense_call_ms, guess.sparse_call_ms,
                max(1.0, self.min_speedup),
            )  # fmt: skip
        result.timing = "modelled"
        result.N = [guess.N]
        result.inputs = f"N={guess.N}, assumed"


def _autocast_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """What a float32 layer may meet on a device beside its own type, as things are now."""
    if not torch.is_autocast_enabled(device.type):
        return ()
    return (torch.float32, torch.get_autocast_dtype(device.type))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _times(given: Input, calls: int) -> str:
    return str(given) if calls == 1 else f"{given} ({calls} calls)"
