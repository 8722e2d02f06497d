"""Decides whether a layer runs sparse: packs the candidates, times them, takes the best."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from sparseinfer.convert.candidates import formats_for, pack_params, platform
from sparseinfer.convert.observe import Input, Observation
from sparseinfer.convert.occupancy import bucket, occupancy
from sparseinfer.convert.plausible import Side, beyond_zeros
from sparseinfer.convert.replace import Replacement
from sparseinfer.convert.report import Candidate, LayerReport, describe
from sparseinfer.convert.scan import Layer, brief
from sparseinfer.kernels import registry
from sparseinfer.kernels.dispatch import kept_bytes, search_algorithm, shared_params
from sparseinfer.layers.dense import build_dense, by_outputs
from sparseinfer.layers.kinds import kind_named
from sparseinfer.layers.linear_conv import SparseLinear
from sparseinfer.ops.run_linear import NARROW
from sparseinfer.timing import cost
from sparseinfer.timing.clock import BUSY
from sparseinfer.timing.device_time import Rotation, Timer, cache_bytes, copies_for
from sparseinfer.timing.machine import HOST
from sparseinfer.timing.measure import CONFIDENCE, Comparison, weigh
from sparseinfer.timing.rates import CONTENDERS
from sparseinfer.timing.tuning import Tuner

__all__ = ["Decider"]

_PLATFORMS = ("cpu", "cuda")

LAYER_BUDGET_S = 0.3
"""Seconds to measure one format of a layer: a ResNet-50 then converts in well under a minute."""

OVERHEAD_BUDGET_S = 0.1

MOST_INPUTS = 4
"""Distinct inputs of a layer that are measured: those with the most elements over all calls."""

COMPUTE_BOUND = 256
"""N from which on a GPU's arithmetic, and no longer the weight's memory, takes the time."""

SHORT_CALL_MS = 0.1
"""Only calls that take less are so short that their overhead can decide."""

_SMALLEST: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(16, 16), (1, 16)),
    "conv1d": (lambda: nn.Conv1d(16, 16, 1), (1, 16, 1)),
    "conv2d": (lambda: nn.Conv2d(16, 16, 1), (1, 16, 1, 1)),
    "convtranspose1d": (lambda: nn.ConvTranspose1d(16, 16, 2, stride=2), (1, 16, 1)),
    "convtranspose2d": (lambda: nn.ConvTranspose2d(16, 16, 2, stride=2), (1, 16, 1, 1)),
}
"""Layers, and inputs of theirs, whose call is nothing but overhead."""


@dataclass
class Decider:
    """The settings of one conversion, and the comparisons that its layers share.

    `observation` is None where no example inputs were given: the cost model then decides.
    `channels_last` compares with the dense layer in that memory format. `layers` is how many there
    are to decide, which share what time there is until `until` (of the tuner's clock). `generates`
    tells that the model will be called with one token at a time, whatever its example inputs.
    `value_type` is that of the panel format's values. `target` is the machine that will run what is
    packed; for another than the host, `observation` is None. `timers` time the layers of each
    device; None, or none: Python's clock. `sides` are the dense sides of what was compared.
    """

    min_speedup: float
    tuner: Tuner
    formats: Sequence[str] | None
    observation: Observation | None
    channels_last: bool = False
    layers: int = 1
    until: float = math.inf
    generates: bool = False
    value_type: str = "float32"
    target: str = HOST
    timers: Mapping[torch.device, Timer | None] = field(default_factory=dict)
    sides: list[Side] = field(default_factory=list)

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
            return self._decide(layer)
        except Exception as error:
            return None, describe(layer, reason=f"it could not be measured: {brief(error)}")

    def _decide(self, layer: Layer) -> tuple[Replacement | None, LayerReport]:
        result = describe(layer, reason=self._untried(layer))
        if result.reason:
            return None, result
        dense = layer.dense().eval()
        best: tuple[Candidate, Replacement] | None = None
        names, why_none = formats_for(layer, platform(layer.device))
        if not names and self.formats is None:
            result.reason = why_none
            return None, result
        result.occupancy = occupancy(by_outputs(layer.module, layer.weight()))
        met = self._tokens_met(layer)
        for name in self.formats or names:
            fewest = 0 if self.generates else min(met, default=0)
            params = pack_params(layer, name, fewest, self._value_type(layer))
            if self.target != HOST:
                params["target"] = self.target
            candidate, sparse = _pack(layer, dense, name, params, met)
            result.candidates.append(candidate)
            if sparse is None:
                continue
            self._time(layer, dense, sparse, candidate, result)
            if best is None or candidate.certain > best[0].certain:
                best = candidate, sparse
            if self.formats is None and platform(layer.device) == "cpu":
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
        if platform(layer.device) not in _PLATFORMS:
            return f"its weight is on {layer.device.type}, where no kernel runs"
        if platform(layer.device) == "cpu" and layer.dtype not in (torch.float32, *NARROW):
            return f"its weight is {_name(layer.dtype)}, and the CPU kernels compute in float32"
        if self.observation is not None:
            met = {given.dtype for given in self.observation.inputs[layer.module]}
            if met - {layer.dtype, *_autocast_types(layer.device)}:
                names = ", ".join(sorted(_name(dtype) for dtype in met))
                return f"its inputs are {names}, and its weight is {_name(layer.dtype)}"
        if layer.nnz == layer.numel and self.min_speedup > 0 and self.formats is None:
            return "it has no zeros"
        return ""

    def _value_type(self, layer: Layer) -> str:
        """That of panel's values: bfloat16 holds all there is in a weight of that type."""
        return "bfloat16" if layer.dtype is torch.bfloat16 else self.value_type

    def _tokens_met(self, layer: Layer) -> set[int]:
        """Every N that a linear layer was seen with; none where that is not known."""
        if self.observation is None or layer.kind != "linear":
            return set()
        return {math.prod(given.shape[:-1]) for given in self.observation.inputs[layer.module]}

    def _choose(
        self, layer: Layer, candidate: Candidate, sparse: Replacement, result: LayerReport
    ) -> tuple[Replacement | None, LayerReport]:
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
            if platform(layer.device) == "cuda":
                result.reason += _memory_choice(layer, candidate, result.N)
            return None, result
        result.format = candidate.format
        return sparse, result

    def _time(
        self, layer: Layer, dense: nn.Module, sparse: Replacement, candidate: Candidate,
        result: LayerReport,
    ) -> None:  # fmt: skip
        if self.observation is not None:
            met = self.observation.inputs[layer.module]
            if met:
                self._measure(layer, dense, sparse, candidate, result, met)
            else:
                candidate.reason = "the example inputs never reach it, so it could not be measured"
        elif platform(layer.device) != "cpu":
            candidate.reason = (
                f"there is no cost model for {layer.device.type}: pass example_inputs"
            )
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
        result.N = [_tokens(dense, given, layer) for given in chosen]
        result.inputs = ", ".join(_times(given, met[given]) for given in chosen)
        if len(met) > len(chosen):
            result.inputs += f", the {len(chosen)} largest of {len(met)}"

    def _implausible(
        self, layer: Layer, dense: nn.Module, given: Input, candidate: Candidate, found: Comparison
    ) -> str:
        """Why the zeros of a layer cannot account for what was found at one input."""
        tokens = _tokens(dense, given, layer)
        return beyond_zeros(
            found, layer, tokens, self.tuner.threads, candidate.format, layer.device
        )

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
        if platform(layer.device) == "cuda":
            problem["timed"] = getattr(timer, "name", "clock")
        left_s = self.left_s
        if left_s <= 0 and self.tuner.recall(problem) is None:
            return None

        def make() -> tuple[Callable[[], object], Callable[[], object]]:
            x = given.make(layer.device)
            if platform(layer.device) == "cuda":
                return _rotated("dense", dense, x), _rotated(name, sparse, x)
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
        if layer.kind not in _SMALLEST or platform(layer.device) != "cpu":
            return ""
        build, shape = _SMALLEST[layer.kind]

        def make() -> tuple[Callable[[], object], Callable[[], object]]:
            with torch.device("meta"):  # where no random number is drawn
                like: Any = build()
            weight = torch.zeros(like.weight.shape)  # which every format can store
            dense = build_dense(like, weight, torch.zeros(len(weight))).eval()
            sparse = kind_named(layer.kind).sparse.from_dense(dense, candidate.format).eval()
            x = torch.zeros(shape)
            return lambda: dense(x), lambda: sparse(x)

        problem = {
            "label": f"call {layer.kind} {candidate.format}",
            "call": layer.kind,
            "format": candidate.format,
        }
        call = self.tuner.compare(problem, make, OVERHEAD_BUDGET_S)
        return _overhead_reason(
            candidate, calls, call.dense_ms, call.sparse_ms, max(1.0, self.min_speedup)
        )

    def _model(self, layer: Layer, candidate: Candidate, result: LayerReport) -> None:
        guess = cost.worst_estimate(
            layer.kind, layer.rows, layer.columns, layer.density, self.tuner.threads,
            candidate.format, self.target,
        )  # fmt: skip
        candidate.dense_ms, candidate.sparse_ms = guess.dense_ms, guess.sparse_ms
        candidate.speedup = guess.speedup
        if guess.speedup < self.min_speedup:
            candidate.reason = _overhead_reason(
                candidate, 1.0, guess.dense_call_ms, guess.sparse_call_ms,
                max(1.0, self.min_speedup),
            )  # fmt: skip
        result.timing = "modelled"
        result.N = [guess.N]
        result.inputs = f"N={guess.N}, assumed"


def _overhead_reason(
    candidate: Candidate, calls: float, dense_ms: float, sparse_ms: float, asked: float
) -> str:
    """What to say where without the overhead of its calls a layer would gain what was `asked`.

    `dense_ms` and `sparse_ms` are the times of a call that computes next to nothing.
    """
    assert candidate.dense_ms is not None and candidate.sparse_ms is not None
    overhead = calls * (sparse_ms - dense_ms)
    bare = candidate.sparse_ms - overhead
    if overhead <= 0 or (bare > 0 and candidate.dense_ms / bare < asked):
        return ""
    text = f"the call's overhead, {1e3 * overhead:.2g} us more than a dense one's,"
    if bare <= 0:
        return f"{text} exceeds the gain"
    gain = candidate.dense_ms - bare
    relation = "exceeds" if overhead > gain else "leaves too little of"
    return f"{text} {relation} the {1e3 * gain:.2g} us that the kernel gains"


def _pack(
    layer: Layer, dense: nn.Module, name: str, params: Mapping[str, Any], met: Collection[int]
) -> tuple[Candidate, Replacement | None]:
    kind = kind_named(layer.kind)
    try:
        on_cpu = platform(layer.device) == "cpu"
        # The CPU kernels compute in float32; inputs and outputs have the layer's type.
        dtype = torch.float32 if on_cpu else layer.dtype
        problem = registry.Problem(
            kind.op, name, layer.device, dtype, groups=layer.groups, **shared_params(params)
        )
        registry.select(problem)
        if layer.dtype is not dtype:
            dense = copy.deepcopy(dense).float()
        sparse = kind.sparse.from_dense(dense, name, **params).eval()
        if layer.dtype is not dtype:
            sparse.to(layer.dtype)
        if platform(layer.device) == "cuda" and isinstance(sparse, SparseLinear):
            for tokens in sorted(met):
                search_algorithm(
                    sparse.packed, "linear", layer.dtype, tokens, sparse.bias is not None
                )
    except (MemoryError, RuntimeError, TypeError, ValueError) as refusal:
        said = str(refusal).splitlines() or [type(refusal).__name__]
        return Candidate(name, reason=said[0]), None
    held = sum(own.numel() for own in sparse.buffers())
    return Candidate(name, packed_bytes=held, params=dict(params)), sparse


def _rotated(name: str, layer: nn.Module, x: torch.Tensor) -> Rotation:
    """Calls of copies of `layer` that exceed the device's cache, each called once already."""
    held = sum(own.numel() * own.itemsize for own in (*layer.parameters(), *layer.buffers()))
    copies = [layer]
    for _ in range(copies_for(held, cache_bytes(x.device)) - 1):
        copies.append(copy.deepcopy(layer))
    calls = [partial(own, x) for own in copies]
    for call in calls:  # what a copy does at its first call is no part of its time
        call()
    return Rotation(name, calls)


def _memory_choice(layer: Layer, candidate: Candidate, tokens: Sequence[int]) -> str:
    """What a layer that stays dense could have been packed for; empty where it is not smaller."""
    packed = (candidate.packed_bytes or 0) + kept_bytes(
        candidate.format, layer.numel, layer.nnz, layer.dtype, max(tokens, default=0)
    )
    share = packed / (layer.numel * layer.dtype.itemsize)
    if not 0 < share < 1:
        return ""
    dense = ""
    if tokens and max(tokens) >= COMPUTE_BOUND:
        dense = f"; at N = {max(tokens)} dense tensor cores are hard to beat"
    return (
        f"{dense}; as {candidate.format} it would take {share:.0%} of the memory: "
        f"formats={[candidate.format]!r} with min_speedup=0 converts it for that"
    )


def _autocast_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """What a float32 layer may meet on a device beside its own type, as things are now."""
    if not torch.is_autocast_enabled(device.type):
        return ()
    return (torch.float32, torch.get_autocast_dtype(device.type))


def _tokens(dense: nn.Module, given: Input, layer: Layer) -> int:
    """N of an input: tokens of a linear or recurrent layer, output pixels of a convolution."""
    if isinstance(dense, nn.RNNBase):
        return torch.Size(given.shape).numel() // dense.input_size
    shape_only = build_dense(
        dense, torch.empty(layer.shape, dtype=layer.dtype, device="meta"), None
    )
    x = torch.empty(given.shape, dtype=given.dtype, device="meta")
    return shape_only(x).numel() // layer.rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _times(given: Input, calls: int) -> str:
    return str(given) if calls == 1 else f"{given} ({calls} calls)"
