"""Decides whether a layer multiplies in int8 or bfloat16: its error, and what it has to beat."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparseinfer import native
from sparseinfer.convert.calibrate import QUANTIZED_KINDS, Calibration, LayerInputs, calibrate
from sparseinfer.convert.candidates import pack_params
from sparseinfer.convert.layer_report import DENSE, TORCH, Candidate, LayerReport
from sparseinfer.convert.replace import Replacement
from sparseinfer.convert.rivals import FLOAT32_SPARSE, Contest, beaten_by
from sparseinfer.convert.scan import Layer, brief
from sparseinfer.layers.base import SparseLayer
from sparseinfer.layers.kinds import kind_named
from sparseinfer.ops.run_dense_int8 import has_dense_int8
from sparseinfer.quantize.activations import ActivationScale
from sparseinfer.quantize.error import sqnr_db
from sparseinfer.quantize.scheme import Scheme
from sparseinfer.timing.machine import HOST, target_facts

if TYPE_CHECKING:
    from sparseinfer.convert.decide import Decider

__all__ = ["MIN_SQNR_DB", "Narrow", "decide_narrow", "narrow_for"]

_log = logging.getLogger(__name__)

MIN_SQNR_DB = 20.0
"""The error of a layer's output is then a tenth of it, in the root of the mean square."""

FORMAT = "panel"
"""The one packed format whose weights multiply narrow activations."""

BF16_ISA = "avx512bf16"
"""The instruction set that multiplies pairs of bfloat16; elsewhere they would be widened."""

STAND_IN_ROWS = 64
"""Of the normal numbers on which a layer's error is found where none of its inputs was seen."""


@dataclass(frozen=True)
class Narrow:
    """The narrow type asked for, and what is known of the layers' inputs.

    `inputs` are those seen in calibration, or on the example inputs where `calibrated` is False:
    int8 activations are then rounded token by token. Layers whose output has less than `min_sqnr`
    decibels stay in the wider type. `target` is the machine that will run the model.
    """

    scheme: Scheme
    inputs: Mapping[nn.Module, LayerInputs]
    calibrated: bool
    min_sqnr: float = MIN_SQNR_DB
    target: str = HOST

    @property
    def words(self) -> str:
        """What is asked of a layer, as the report says it."""
        return "int8" if self.scheme.quantizes else "bfloat16 activations"

    def scale(self, layer: Layer) -> ActivationScale | None:
        """The calibrated scale of a layer's input; None where it is found token by token."""
        found = self.inputs.get(layer.module)
        return found.scale if self.calibrated and found is not None else None

    def sample(self, layer: Layer) -> Tensor | None:
        """Inputs of a layer to find its error on; None for a convolution that none reached."""
        found = self.inputs.get(layer.module)
        if found is not None and found.sample is not None:
            return found.sample
        if layer.kind != "linear":
            return None
        generator = torch.Generator().manual_seed(0)
        return torch.randn(STAND_IN_ROWS, layer.columns, generator=generator)

    def refuses(self, layer: Layer) -> str:
        """Why a layer has no narrow counterpart; empty where it has."""
        return self._no_int8(layer) if self.scheme.quantizes else self._no_bfloat16(layer)

    def _no_bfloat16(self, layer: Layer) -> str:
        if layer.device.type != "cpu":
            return f"there is no bfloat16 kernel on {layer.device.type}"
        kind = kind_named(layer.kind)
        why = _no_bf16_products(self.target)
        if not issubclass(kind.sparse, SparseLayer):
            why = f"there is no bfloat16 kernel for {layer.kind}"
        return f"{why}, so the arithmetic is float32 with bfloat16 values" if why else ""

    def _no_int8(self, layer: Layer) -> str:
        if layer.kind not in QUANTIZED_KINDS:
            return f"there is no int8 kernel for {layer.kind}"
        if layer.device.type != "cpu":
            return f"there is no int8 kernel on {layer.device.type}"
        if layer.dtype is not torch.float32:
            return f"its weight is {str(layer.dtype).removeprefix('torch.')}, not float32"
        if self.scale(layer) is None and layer.kind != "linear":
            seen = self.inputs.get(layer.module)
            why = seen.missing if self.calibrated and seen is not None else ""
            return f"a convolution needs calibrated activations: {why or 'pass calibration'}"
        return ""


def narrow_for(
    model: nn.Module, layers: Sequence[Layer], scheme: Scheme, calibration: Any,
    example_inputs: Any, min_sqnr: float = MIN_SQNR_DB, target: str = HOST,
) -> Narrow | None:  # fmt: skip
    """What `Decider` needs for a scheme that rounds activations; None for one that does not.

    `calibration` is data as `calibrate` takes it, what that returned, or None.

    Raises:
        ValueError: the calibration is none for this scheme or this model, or see `calibrate`.
        TypeError: see `calibrate`.

    Example:
        >>> narrow_for(nn.Linear(2, 2), [], Scheme("float32", "float32"), None, None) is None
        True
    """
    if not scheme.quantizes and calibration is not None:
        raise ValueError(
            f"expected no calibration for {scheme}, which takes no scales of activations, got one; "
            "try weights='int8'"
        )
    if not scheme.rounds:
        return None
    if calibration is None:
        return Narrow(scheme, _seen(model, layers, example_inputs), False, min_sqnr, target)
    if not isinstance(calibration, Calibration):
        calibration = calibrate(model, calibration)
    names = {layer.name for layer in layers if layer.kind in QUANTIZED_KINDS}
    if names and not names & calibration.inputs.keys():
        raise ValueError(
            f"expected a calibration of this model's layers, such as {min(names)!r}, got one of "
            f"{min(calibration.inputs, default='none')!r}; try calibration=loader"
        )
    return Narrow(scheme, _by_module(layers, calibration), True, min_sqnr, target)


def _seen(
    model: nn.Module, layers: Sequence[Layer], example_inputs: Any
) -> Mapping[nn.Module, LayerInputs]:
    """Samples of the layers' inputs on the example inputs, where there are finite ones."""
    if example_inputs is None:
        return {}
    try:
        return _by_module(layers, calibrate(model, example_inputs, method="minmax"))
    except ValueError as error:
        _log.debug("no sample of the layers' inputs: %s", brief(error))
        return {}


def _by_module(
    layers: Sequence[Layer], calibration: Calibration
) -> Mapping[nn.Module, LayerInputs]:
    inputs = calibration.inputs
    return {layer.module: inputs[layer.name] for layer in layers if layer.name in inputs}


def decide_narrow(
    decider: Decider, narrow: Narrow, layer: Layer, dense: nn.Module, result: LayerReport
) -> Replacement | None:
    """The narrow replacement of `layer`; None where it stays in the wider type: `result.wider`."""
    result.wider = narrow.refuses(layer)
    if result.wider:
        return None
    scale, tokens = narrow.scale(layer), decider.tokens_met(layer)
    fewest = 0 if decider.generates else min(tokens, default=0)
    params = pack_params(layer, FORMAT, fewest, narrow.scheme.weights)
    if decider.target != HOST:
        params["target"] = decider.target
    sample = narrow.sample(layer)
    shown = dict(params)
    if narrow.scheme.quantizes:
        shown["activations"] = "per tensor" if scale else "per token"
    else:
        shown["activations"] = params["activations"] = narrow.scheme.activations
    try:
        sparse = _packed(layer, dense, scale, params)
        if sample is not None:
            x = sample.to(layer.dtype)
            result.sqnr_db = sqnr_db(dense(x), sparse(x))
    except (MemoryError, RuntimeError, TypeError, ValueError) as refusal:
        result.wider = brief(refusal)
        return None
    if result.sqnr_db is not None and result.sqnr_db < narrow.min_sqnr:
        result.wider = (
            f"its output would have {result.sqnr_db:.1f} dB of signal over error, less than the "
            f"{narrow.min_sqnr:g} dB asked"
        )
        return None
    packed_bytes = sum(own.numel() * own.itemsize for own in sparse.buffers())
    candidate = Candidate(FORMAT, packed_bytes, params=shown)
    result.candidates.append(candidate)
    decider.time(layer, dense, sparse, candidate, result)
    chosen, _ = decider.choose(layer, candidate, sparse, result)
    lost = result.reason
    contest = Contest(layer, dense, scale, sample, decider.tuner.threads, FORMAT, fewest)
    if chosen is not None:
        activations = narrow.scheme.activations
        lost = beaten_by(decider, activations, contest, sparse, shown, result)
    if lost:
        chosen = _dense_int8(decider, narrow, contest, sparse, shown, result)
        if chosen is None:
            tried = result.candidates[-1]
            if tried.format == TORCH and tried.speedup is not None:
                lost += f"; torch's dense int8 kernel runs {tried.speedup:.2f}x"
            result.wider = lost
            result.format, result.weights = DENSE, "float32"
            return None
        result.reason += f", where ours {lost}"
    result.activations = narrow.scheme.activations
    if result.sqnr_db is not None:
        result.reason += f"; {result.sqnr_db:.1f} dB of signal over error"
    result.reason += "".join(f", {ratio:.2f}x {name}" for name, ratio in result.over.items())
    return chosen


def _dense_int8(
    decider: Decider, narrow: Narrow, contest: Contest, sparse: Any, params: Mapping[str, Any],
    result: LayerReport,
) -> Replacement | None:  # fmt: skip
    """The layer as torch's dense int8 kernel runs it, where that gains enough; None elsewhere.

    It has to beat the layer as it was, and ours in float32.
    """
    sample = contest.sample
    if result.timing != "measured" or sample is None or not has_dense_int8():
        return None
    if not (sparse.dense_int8 and sparse.handle.is_int8):
        return None
    other, found = copy.deepcopy(sparse), copy.copy(result)
    other.run_dense()
    found.over = {}
    found.sqnr_db = sqnr_db(contest.dense(sample), other(sample))
    if found.sqnr_db < narrow.min_sqnr:
        return None
    rounded = "per tensor" if contest.scale else "per call"
    packed_bytes = result.packed_bytes + contest.layer.numel
    candidate = Candidate(
        TORCH, packed_bytes, params={**params, "activations": rounded, "kernel": TORCH}
    )
    result.candidates.append(candidate)
    decider.time(contest.layer, contest.dense, other, candidate, found)
    chosen, _ = decider.choose(contest.layer, candidate, other, found)
    if chosen is None:
        return None
    activations, others = narrow.scheme.activations, (FLOAT32_SPARSE,)
    if beaten_by(decider, activations, contest, other, candidate.params, found, others):
        return None
    vars(result).update(vars(found))
    return chosen


def _packed(
    layer: Layer, dense: nn.Module, scale: ActivationScale | None, params: Mapping[str, Any]
) -> Any:
    """The sparse layer with these parameters, of the type of the dense one."""
    if layer.dtype is not torch.float32:
        dense = copy.deepcopy(dense).float()
    sparse: Any = kind_named(layer.kind).sparse
    return sparse.from_dense(dense, FORMAT, input_scale=scale, **params).to(layer.dtype).eval()


def _no_bf16_products(target: str) -> str:
    """Why a machine has no instructions that multiply pairs of bfloat16; empty where it has."""
    isa = next(own for own in native.isas() if own["name"] == BF16_ISA)
    if target == HOST:
        return "" if isa["supported"] else str(isa["reason"])
    lacking = set(isa["features"]) - set(target_facts(target)["features"])
    return f"{target} has no {', '.join(sorted(lacking))}" if lacking else ""
