"""The rows of `benchmarks.run`: contenders against dense PyTorch, and what they amount to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.record import Record
from sparseinfer.timing.rounds import Quartiles, Rounds, Timing


@dataclass(frozen=True)
class Row:
    """One contender against dense PyTorch on one problem."""

    suite: str
    group: str
    case: str
    op: str
    m: int
    k: int
    n: int
    pattern: str
    sparsity: float
    nnz: int
    threads: int
    promised: bool
    """Whether the case belongs to the table whose geometric mean the project promises."""
    contender: str
    kernel: str | None
    """Registry row that ran; None where the contender is not one of ours."""
    rounds: int
    dense: Timing
    sparse: Timing
    speedup: Quartiles
    """Dense time over the contender's time, ratio taken round by round."""
    dense_bytes: int
    packed_bytes: int | None
    copies: tuple[int, int]
    """Copies of the dense and of the packed weight that the calls rotated through."""


@dataclass(frozen=True)
class Failure:
    """A contender that could not be measured, and why."""

    suite: str
    case: str
    pattern: str
    sparsity: float
    threads: int
    error: str


@dataclass(frozen=True)
class Check:
    """A geometric mean (or another summary) of the rows, beside what was promised for it."""

    name: str
    sparsity: float
    threads: int
    value: float
    cases: int
    """Number of rows summarised."""
    expected: float | None = None
    at_most: bool = False
    """Whether less is better: the value is met when it is not above ``expected``."""

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None where nothing was promised."""
        if self.expected is None:
            return None
        return self.value <= self.expected if self.at_most else self.value >= self.expected


@dataclass(kw_only=True)
class Results(Record):
    """Everything one run of the benchmarks writes."""

    PROGRAM = "benchmarks.run"

    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    summary: list[Check] = field(default_factory=list)


def make_row(found: Rounds, name: str, *, baseline: str = "dense", **facts: Any) -> Row:
    """Return the row of contender ``name`` of the rounds, with the facts given by keyword."""
    return Row(
        contender=name,
        rounds=found.rounds,
        dense=found.timing(baseline),
        sparse=found.timing(name),
        speedup=found.speedup(name, over=baseline),
        **facts,
    )


def geometric_mean(figures: Iterable[float]) -> float:
    """Return the geometric mean.

    Raises:
        ValueError: there are no figures, or one is not above zero.
    """
    logs = [math.log(figure) for figure in figures]
    if not logs:
        raise ValueError("expected at least one figure, got none, try a suite that has the rows")
    return math.exp(sum(logs) / len(logs))
