"""What the tests of the peers share: made-up peers, and a layer and turns that take no time."""

from __future__ import annotations

from benchmarks.cases import LinearCase
from benchmarks.peers.catalogue import Peer, Target
from benchmarks.peers.turns import TurnPlan

TARGET = Target(LinearCase(24, 16, 3))
PLAN = TurnPlan(rounds=3, floor=2, sample=1e-5, samples=2, warm=0.0, turn=1e-3, budget=1e-2)


def fake(name: str, role: str = "dense") -> Peer:
    """Return the peer whose engine is the class ``name`` of fake_peer.py."""
    return Peer(name, "benchmarks.tests.fake_peer", name, None, role)
