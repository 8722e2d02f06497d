"""What a run on a GPU writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.record import Record

MEASURED = "measured: medians of interleaved rounds on the GPU"
REHEARSED = "NOT A MEASUREMENT: tiny shapes in Triton's interpreter, timed by the CPU's clock"


@dataclass(frozen=True)
class Checked:
    """A GPU row against float64 at one problem; `excess` is by how much it exceeds the bound."""

    row: str
    dtype: str
    shape: str
    passed: bool
    excess: float
    error: str = ""


@dataclass(frozen=True)
class Timed:
    """One contender at one problem: milliseconds and their interval, beside the dense one's."""

    suite: str
    case: str
    m: int
    k: int
    n: int
    pattern: str
    sparsity: float
    contender: str
    timed: str
    """`graph` or `events`; `clock` in a rehearsal."""
    copies: int
    ms: float
    low_ms: float
    high_ms: float
    speedup: float
    """Dense milliseconds over these."""
    gb_s: float
    """Bytes of weight, input and output over the time."""
    copy_share: float
    """Of the measured copy bandwidth."""
    bytes: int
    tokens_s: float | None = None


@dataclass(frozen=True)
class Missing:
    """What was not measured, and why: it cannot run, it failed, or there was no time."""

    suite: str
    case: str
    contender: str
    why: str


@dataclass(kw_only=True)
class GpuResults(Record):
    """Everything one run writes. `kind` says whether it is a measurement at all."""

    PROGRAM = "benchmarks.gpu"

    kind: str
    copy_gb_s: float = 0.0
    checks: list[Checked] = field(default_factory=list)
    rows: list[Timed] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
