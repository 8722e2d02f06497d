"""What a layer of narrow types is timed against beside its dense self: one table, a row a rival.

A layer has to beat those that `count`; of the others, which no layer can run as, the report tells
the ratio where they are installed. They are imported where a layer is measured and nowhere else.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparseinfer.convert.candidates import pack_params
from sparseinfer.convert.dense_int8 import dense_int8
from sparseinfer.convert.layer_report import Candidate, LayerReport
from sparseinfer.convert.onnx_int8 import onnxruntime_int8, openvino_int8
from sparseinfer.convert.replace import Replacement
from sparseinfer.convert.scan import Layer, brief
from sparseinfer.layers.kinds import kind_named
from sparseinfer.quantize.activations import ActivationScale

if TYPE_CHECKING:
    from sparseinfer.convert.decide import Decider

__all__ = ["FLOAT32_SPARSE", "RIVALS", "TORCH_INT8", "Contest", "Rival", "beaten_by", "race"]

_log = logging.getLogger(__name__)

Call = Callable[[Tensor], object]


@dataclass(frozen=True)
class Contest:
    """A layer that a rival stands beside: its dense self, the scale and a sample of its input.

    `format` and `fewest_tokens` are those that a sparse layer is packed with.
    """

    layer: Layer
    dense: nn.Module
    scale: ActivationScale | None
    sample: Tensor | None
    threads: int
    format: str
    fewest_tokens: int


@dataclass(frozen=True)
class Rival:
    """A way to run a layer whose activations are of one of these types.

    `make` gives a call of it, float32 in and out, or raises what `absent` names where there is
    none. `counts` tells that a layer which does not beat it by `min_speedup` runs otherwise.
    """

    name: str
    activations: tuple[str, ...]
    make: Callable[[Contest], Call]
    counts: bool = True


ABSENT = (ImportError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError)
"""What a rival raises that is not installed, not built in, or has no such layer."""

TORCH_INT8 = "torch int8"
FLOAT32_SPARSE = "float32 sparse"


def _torch_int8(contest: Contest) -> Call:
    call, why = dense_int8(contest.dense, contest.scale, _sample(contest))
    if call is None:
        raise ValueError(why)
    return call


def _torch_bfloat16(contest: Contest) -> Call:
    dense = copy.deepcopy(contest.dense).bfloat16()
    dtype = contest.layer.dtype
    return lambda x: dense(x.bfloat16()).to(dtype)


def _float32_sparse(contest: Contest) -> Call:
    layer = contest.layer
    if layer.nnz == layer.numel:
        raise ValueError("it has no zeros")
    params = pack_params(layer, contest.format, contest.fewest_tokens)
    dense = copy.deepcopy(contest.dense).float()
    sparse = kind_named(layer.kind).sparse.from_dense(dense, contest.format, **params)
    call: Call = sparse.to(layer.dtype).eval().forward
    return call


def _other(
    make: Callable[[nn.Module, ActivationScale | None, Tensor, int], Call], contest: Contest
) -> Call:
    return make(contest.dense, contest.scale, _sample(contest), contest.threads)


def _sample(contest: Contest) -> Tensor:
    if contest.sample is None:
        raise ValueError("no input of it was seen")
    return contest.sample


RIVALS: tuple[Rival, ...] = (
    Rival(TORCH_INT8, ("int8",), _torch_int8),
    Rival("torch bfloat16", ("bfloat16",), _torch_bfloat16),
    Rival(FLOAT32_SPARSE, ("int8", "bfloat16"), _float32_sparse),
    Rival("ONNX Runtime int8", ("int8",), partial(_other, onnxruntime_int8), counts=False),
    Rival("OpenVINO int8", ("int8",), partial(_other, openvino_int8), counts=False),
)
"""Those that count first: where one of them wins, the others are not timed."""


def race(
    decider: Decider, rival: Rival, contest: Contest, sparse: Replacement,
    params: Mapping[str, Any], result: LayerReport,
) -> Candidate | None:  # fmt: skip
    """Time a layer against a rival, whose time is `dense_ms` then; None where there is no rival."""
    try:
        call = rival.make(contest)
        if contest.sample is not None:
            call(contest.sample[:1] if contest.sample.dim() > 1 else contest.sample)
    except ABSENT as why:
        _log.debug("no %s for %s: %s", rival.name, contest.layer.name, brief(why))
        return None
    other: Any = copy.copy(contest.dense)
    other.forward = call
    other.extra_repr = lambda: f"{contest.dense.extra_repr()}, {rival.name}"
    candidate = Candidate(contest.format, params={**params, "dense": rival.name})
    with torch.no_grad():
        decider.time(contest.layer, other, sparse, candidate, copy.copy(result))
    if candidate.speedup is not None:
        result.over[rival.name] = candidate.speedup
    return candidate


def beaten_by(
    decider: Decider, activations: str, contest: Contest, sparse: Replacement,
    params: Mapping[str, Any], result: LayerReport, names: Collection[str] = (),
) -> str:  # fmt: skip
    """Why a rival is the better one; empty where none is. `result.over` gets the ratios.

    `names` are those of the rivals that are met; empty: all.
    """
    if result.timing != "measured":
        return ""
    for rival in RIVALS:
        if activations not in rival.activations or (names and rival.name not in names):
            continue
        found = race(decider, rival, contest, sparse, params, result)
        if found is None or found.speedup is None or not rival.counts:
            continue
        if found.certain < decider.min_speedup:
            return (
                f"measured {found.speedup:.2f}x {rival.name}, less than the "
                f"{decider.min_speedup:g}x asked"
            )
    return ""
