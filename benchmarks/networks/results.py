"""The result file of whole networks: what each engine took, beside the others and float64."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.record import Record
from sparseinfer.timing.rounds import Quartiles


@dataclass(frozen=True)
class NetworkRow:
    """One engine on one network."""

    network: str
    batch: int
    sparsity: float
    """Share of zeros among the weights that could be pruned, as asked for."""
    threads: int
    engine: str
    role: str
    """``ours`` or ``dense``."""
    dtype: str
    seconds: Quartiles
    """Quartiles over the rounds of a turn's median, seconds a call."""
    minimum: float
    rounds: int
    cores: float
    quiet: bool
    error: float
    """Largest difference from float64 over the largest output."""
    sqnr_db: float
    """Power of the float64 output over that of the difference."""
    top1: float
    """Share of inputs with the largest output where float64 has it."""
    ours_faster: Quartiles | None
    """How many times faster ours of the same type is, round by round; None where it did not run."""
    is_best: bool
    """Whether this is the fastest dense engine of its type."""


@dataclass(frozen=True)
class NetworkNotRun:
    """An engine that has no figure for a network, and why."""

    network: str
    batch: int
    sparsity: float
    threads: int
    engine: str
    reason: str


@dataclass(kw_only=True)
class NetworkResults(Record):
    """Everything one run of `benchmarks.networks` writes."""

    PROGRAM = "benchmarks.networks"

    engines: dict[str, str] = field(default_factory=dict)
    """Version of each engine that was started."""
    rows: list[NetworkRow] = field(default_factory=list)
    not_run: list[NetworkNotRun] = field(default_factory=list)
