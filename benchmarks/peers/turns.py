"""The turns of the peers on one layer, one process computing at a time.

Whose turn it is, and what is made of the figures, `sparseinfer.timing.rounds` says; a worker takes
the samples of its turn itself, with nothing but NumPy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from benchmarks.peers.process import PeerError
from sparseinfer.timing.rounds import turns

CORES_SLACK = 0.3
"""Cores above the number of threads that a measurement of CPU time may show."""


class Asker(Protocol):
    """What answers a request: a worker process, or a test's double."""

    def ask(self, **request: Any) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TurnPlan:
    """How a peer's turns are laid out: all times in seconds.

    A sample repeats its call until it takes ``sample``; a turn takes up to ``samples`` of them, as
    many as ``turn`` has time for, after calls for ``warm``, which wake the peer's threads and bring
    back the data that the peers between drove out. A peer takes ``rounds`` turns, or, never below
    ``floor``, as many as ``budget`` has time for.
    """

    rounds: int = 7
    floor: int = 3
    sample: float = 1e-3
    samples: int = 5
    warm: float = 2e-3
    turn: float = 2e-2
    budget: float = 0.3

    def turns_of(self, seconds: float) -> Turns:
        """Return the turns of a peer whose call takes about ``seconds``."""
        seconds = max(seconds, 1e-9)
        inner = max(1, math.ceil(self.sample / seconds))
        samples = min(self.samples, max(1, int(self.turn / (inner * seconds))))
        # A call this long spends little of its time on waking up.
        warm = self.warm if seconds < self.turn else 0.0
        spent = samples * inner * seconds + (max(warm, seconds) if warm else 0.0)
        rounds = min(self.rounds, max(self.floor, int(self.budget / spent)))
        return Turns(inner, samples, warm, rounds)


@dataclass(frozen=True)
class Turns:
    """What is asked of one peer, and how often."""

    inner: int
    samples: int
    warm: float
    rounds: int


@dataclass
class Samples:
    """What a peer's turns found, by round: medians in seconds a call, and cores kept busy."""

    medians: list[float] = field(default_factory=list)
    minimum: float = math.inf
    cores: list[float] = field(default_factory=list)
    quiet: bool = True
    """Whether the peer's threads went to sleep after every turn."""

    def add(self, reply: dict[str, Any]) -> None:
        """Add what a turn found."""
        self.medians.append(reply["median"])
        self.minimum = min(self.minimum, reply["minimum"])
        self.cores.append(reply["cores"])
        self.quiet &= reply["quiet"]


def take_turns(
    peers: Mapping[str, Asker], layout: Mapping[str, Turns], threads: int
) -> tuple[dict[str, Samples], dict[str, str]]:
    """Let every peer take its turns, and return what they found and who fell out, with the reason.

    A peer that fails, or keeps more cores busy than ``threads``, falls out; the others go on.
    """
    found = {name: Samples() for name in peers}
    dropped: dict[str, str] = {}
    takers = {name: partial(_ask, peer, layout[name]) for name, peer in peers.items()}
    rounds = turns(takers)
    while takers:
        for name, reply in next(rounds).items():
            if isinstance(reply, PeerError):
                dropped[name] = str(reply)
                del takers[name]
                continue
            found[name].add(reply)
            if len(found[name].medians) == layout[name].rounds:
                del takers[name]
    for name, samples in found.items():
        if name not in dropped and statistics.median(samples.cores) > threads + CORES_SLACK:
            dropped[name] = (
                f"expected at most {threads} busy cores, got {statistics.median(samples.cores):.1f}"
            )
    return {name: one for name, one in found.items() if name not in dropped}, dropped


def _ask(peer: Asker, turn: Turns) -> dict[str, Any] | PeerError:
    try:
        return peer.ask(do="time", inner=turn.inner, samples=turn.samples, warm=turn.warm)
    except PeerError as error:
        return error
