"""What the tests of the peers share: made-up peers and rows, a layer, turns that take no time."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.cases import LinearCase
from benchmarks.peers.catalogue import Peer, Target
from benchmarks.peers.results import NotRun, PeerResults, PeerRow
from benchmarks.peers.turns import TurnPlan
from sparseinfer.timing.rounds import Quartiles

TARGET = Target(LinearCase(24, 16, 3))
PLAN = TurnPlan(rounds=3, floor=2, sample=1e-5, samples=2, warm=0.0, turn=1e-3, budget=1e-2)


def fake(name: str, role: str = "dense") -> Peer:
    """Return the peer whose engine is the class ``name`` of fake_peer.py."""
    return Peer(name, "benchmarks.tests.fake_peer", name, None, role)


def made_up_row(peer: str, ours: float, best: float, **changes: Any) -> PeerRow:
    """Return the row of a peer that ours and the best dense one are so many times faster than."""
    role = {"ours": "ours", "eager": "dense", "lib": "dense"}.get(peer, "sparse")
    row = PeerRow(
        target="linear 8x8 N=128", group="linear N>=128", op="linear", m=8, k=8, n=128,
        cold=False, sparsity=0.9, nnz=6, threads=1, peer=peer, role=role, precision="float32",
        peer_threads=1, cores=1.0, quiet=True, copies=1, rounds=7,
        seconds=Quartiles(1e-3 * ours, 1.1e-3 * ours, 1.2e-3 * ours), minimum=9e-4 * ours,
        ours_faster=Quartiles(ours, ours, ours), best_faster=Quartiles(best, best, best),
        is_best=peer == "lib",
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def made_up_results(rows: list[PeerRow], not_run: list[NotRun] | None = None) -> PeerResults:
    """Return a complete result file of such rows."""
    return PeerResults(
        date="2026-01-02T03:04:05+00:00",
        command="python -m benchmarks.peers",
        commit={"hash": "0123456789abcdef", "dirty": False},
        versions={"torch": "2.13.0"},
        machine={"cpu": "a processor", "cores": 2, "os": "a system"},
        settings={"quick": False},
        complete=True,
        peers={"lib": "lib 1.0", "ours": "sparseinfer 0.1.0"},
        rows=rows,
        not_run=not_run or [],
    )
