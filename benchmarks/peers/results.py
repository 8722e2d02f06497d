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
    """``ours``, ``dense``, ``narrow`` (dense, a type narrower than was asked for) or ``sparse``."""
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
    """How many times faster the best dense peer is; None where none ran."""
    is_best: bool
    """Whether this is the best dense peer: the one of the least median."""
    dtype: str = "float32"
    """Type asked for: ``float32``, ``bfloat16`` or ``int8``."""
    io: str = "float32"
    """Type of x and y."""
    structure: str = "unstructured"
    """Where the zeros are: ``unstructured``, or blocks of outputs x inputs such as ``4x1``."""
    error: float | None = None
    """Worst error against the exact result of an int8 layer, in steps of y's scale."""


@dataclass(frozen=True)
class NotRun:
    """A peer that has no figure for a layer, and why."""

    target: str
    sparsity: float
    threads: int
    peer: str
    reason: str
    io: str = "float32"
    structure: str = "unstructured"


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
