"""The result file of the models: what was compared and timed, where, by which command."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from benchmarks.results import SCHEMA
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


@dataclass
class ModelResults:
    """Everything one run of `benchmarks.models` writes."""

    date: str
    command: str
    commit: dict[str, Any]
    versions: dict[str, Any]
    machine: dict[str, Any]
    settings: dict[str, Any]
    complete: bool = False
    rows: list[ModelRow] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failures: list[ModelFailure] = field(default_factory=list)


def _timing(value: dict[str, Any] | None) -> Timing | None:
    if value is None:
        return None
    return Timing(Quartiles(**value["seconds"]), value["minimum"], value["inner"])


def _row(value: dict[str, Any]) -> ModelRow:
    over = value["speedup_over_channels_last"]
    return ModelRow(
        **{
            **value,
            "difference": Difference(**value["difference"]),
            "dense": _timing(value["dense"]),
            "converted": _timing(value["converted"]),
            "channels_last": _timing(value["channels_last"]),
            "speedup": Quartiles(**value["speedup"]),
            "speedup_over_channels_last": None if over is None else Quartiles(**over),
        }
    )


def from_json(text: str) -> ModelResults:
    """Parse a result file of `benchmarks.models`.

    Raises:
        ValueError: the text is not JSON, is of another schema, or lacks a field.
    """
    data = json.loads(text)
    schema = data.pop("schema", None) if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"expected a result file of schema {SCHEMA}, got {schema!r}, "
            "try benchmarks.models again"
        )
    try:
        rows = [_row(row) for row in data.pop("rows")]
        skipped = [Skipped(**item) for item in data.pop("skipped")]
        failures = [ModelFailure(**item) for item in data.pop("failures")]
        return ModelResults(**data, rows=rows, skipped=skipped, failures=failures)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected a result file of benchmarks.models, got one that does not fit it ({error}), "
            "try benchmarks.models again"
        ) from error
