"""The result file of the peers: what each took, beside ours and beside the best dense peer."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.record import Record
from sparseinfer.timing.rounds import Quartiles


@dataclass(frozen=True)
class PeerRow:
    """One peer on one layer."""

    target: str
    group: str
    op: str
    m: int
    k: int
    n: int
    cold: bool
    sparsity: float
    nnz: int
    threads: int
    """Threads asked for."""
    peer: str
    role: str
    """``ours``, ``dense`` (float32), ``narrow`` (dense, a narrower type) or ``sparse``."""
    precision: str
    peer_threads: int
    """Threads that the peer says it uses."""
    cores: float
    """CPU seconds over seconds while it was timed: cores that it kept busy."""
    quiet: bool
    """Whether its threads went to sleep after every turn, and took no part in the next peer's."""
    copies: int
    """Copies of the weight that its calls rotated through."""
    rounds: int
    seconds: Quartiles
    """Quartiles over the rounds of a turn's median, seconds a call."""
    minimum: float
    ours_faster: Quartiles | None
    """How many times faster ours is, ratio taken round by round; None where ours did not run."""
    best_faster: Quartiles | None
    """How many times faster the best dense float32 peer is; None where none ran."""
    is_best: bool
    """Whether this is the best dense float32 peer: the one of the least median."""


@dataclass(frozen=True)
class NotRun:
    """A peer that has no figure for a layer, and why."""

    target: str
    sparsity: float
    threads: int
    peer: str
    reason: str


@dataclass(kw_only=True)
class PeerResults(Record):
    """Everything one run of `benchmarks.peers` writes.

    It is complete where every layer asked for was reached; ``not_run`` has the peers that did not
    run.
    """

    PROGRAM = "benchmarks.peers"

    peers: dict[str, str] = field(default_factory=dict)
    """Version of each peer that was started."""
    rows: list[PeerRow] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)
