"""The result file of the models: what was compared and timed, where, by which command."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.record import Record
from sparseinfer.timing.rounds import Quartiles, Timing

SLOWER = 0.97
"""A converted model below this ratio to dense breaks the promise; the rest is noise."""


@dataclass(frozen=True)
class Difference:
    """How far the converted model's outputs are from the pruned dense model's.

    `error` and `dense_error` are largest absolute distances from the same model in float64,
    `between` the largest between the two, `largest` the largest output; `cosine` is the least
    cosine of two outputs of one input.
    """

    between: float
    error: float
    dense_error: float
    largest: float
    cosine: float
    tokens: int | None = None
    """Tokens that both wrote, all of them equal; None where none are written."""


@dataclass(frozen=True)
class ModelRow:
    """One converted model against the pruned dense one."""

    model: str
    does: str
    trained: bool
    sparsity: float
    """Share of zeros asked of the layers that were pruned."""
    zeros: float
    """Share of zeros in them."""
    threads: int
    converted_layers: int
    left_layers: dict[str, str]
    """Layers that stayed dense, and the reason for each; those the report does not know too."""
    conversion_seconds: float
    dense_bytes: int
    """Parameters and buffers, shared ones once."""
    converted_bytes: int
    difference: Difference
    rounds: int
    dense: Timing
    converted: Timing
    speedup: Quartiles
    """Dense time over converted time, ratio taken round by round."""
    channels_last: Timing | None = None
    """The dense model in torch's channels_last format, for networks that see images."""
    speedup_over_channels_last: Quartiles | None = None

    @property
    def is_slower(self) -> bool:
        """Whether the whole model got slower by more than noise."""
        return self.speedup.median < SLOWER


@dataclass(frozen=True)
class Skipped:
    """A model that was not measured, and the command that makes it measurable."""

    model: str
    reason: str


@dataclass(frozen=True)
class ModelFailure:
    """A model that could not be converted, or whose outputs were wrong."""

    model: str
    sparsity: float
    threads: int
    error: str


@dataclass(kw_only=True)
class ModelResults(Record):
    """Everything one run of `benchmarks.models` writes."""

    PROGRAM = "benchmarks.models"

    rows: list[ModelRow] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failures: list[ModelFailure] = field(default_factory=list)
