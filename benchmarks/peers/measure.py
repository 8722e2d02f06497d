"""One layer through every peer: prepare, check against float64, take turns, and the rows."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import ConvCase, Pattern
from benchmarks.layer_data import LayerData, WrongResultError
from benchmarks.peers.catalogue import Peer, Target
from benchmarks.peers.process import PeerError
from benchmarks.peers.results import NotRun, PeerRow
from benchmarks.peers.turns import Asker, Samples, TurnPlan, Turns, take_turns
from benchmarks.peers.worker import wait_until_quiet
from sparseinfer.timing.rounds import Quartiles, Rounds

COLD_BYTES = 128 * 2**20
"""Rotated copies of a weight exceed this, four times the last-level cache of a common server."""

UNIT_ROUNDOFF = {"float32": 0.0, "bfloat16": 2.0**-9, "float16": 2.0**-11}
"""Unit roundoff of the types that a peer may round to beside float32; 0: none."""


def request_of(data: LayerData, target: Target, folder: Path) -> dict[str, Any]:
    """Write the layer's arrays to ``folder`` and return the request that prepares it."""
    assert data.bias is not None
    for name, tensor in (("weight", data.weight), ("bias", data.bias), ("x", data.x)):
        np.save(folder / f"{name}.npy", tensor.numpy())
    case = data.case
    stride, padding = (case.stride, case.padding) if isinstance(case, ConvCase) else (1, 0)
    return {
        "do": "prepare",
        "arrays": str(folder),
        "op": case.op,
        "stride": stride,
        "padding": padding,
        "cold_bytes": COLD_BYTES if target.cold else 0,
    }


def checked(peer: Peer, asker: Asker, data: LayerData, threads: int, request: dict[str, Any]
            ) -> dict[str, Any]:  # fmt: skip
    """Let a peer prepare the layer, check its result and its settings, and return its answer.

    Raises:
        PeerError: it cannot, or not with these threads, or not in the precision that its role has.
        WrongResultError: its result is beyond the bound.
    """
    result = Path(request["arrays"]) / "y.npy"
    result.unlink(missing_ok=True)
    reply = asker.ask(**request, result=str(result))
    expected = min(threads, peer.most_threads or threads)
    if reply["threads"] != expected:
        raise PeerError(f"expected {expected} threads, got {reply['threads']}")
    unit = UNIT_ROUNDOFF.get(reply["precision"])
    if unit is None or (unit > 0) != (peer.role == "narrow"):
        raise PeerError(f"computes in {reply['precision']}")
    data.verify(peer.name, torch.from_numpy(np.load(result, allow_pickle=False)), unit)
    return reply


def measure(
    target: Target,
    sparsity: float,
    threads: int,
    peers: Sequence[Peer],
    worker_of: Callable[[Peer], Asker],
    plan: TurnPlan,
    folder: Path,
) -> tuple[list[PeerRow], list[NotRun]]:
    """Measure the peers that run the layer's operation; name those that could not, and why.

    Args:
        target: the layer.
        sparsity: share of its weights that is zero, at random places.
        threads: threads for every peer.
        peers: who takes part, in the order of the turns.
        worker_of: gives a peer's worker; raises PeerError where there is none.
        plan: how the turns are laid out.
        folder: where arrays are exchanged; what is in it is not overwritten while a peer maps it.
    """
    data = LayerData(target.case, Pattern(sparsity))
    with tempfile.TemporaryDirectory(dir=folder) as own:
        return _measure(data, target, threads, peers, worker_of, plan, Path(own))


def _measure(
    data: LayerData, target: Target, threads: int, peers: Sequence[Peer],
    worker_of: Callable[[Peer], Asker], plan: TurnPlan, folder: Path,
) -> tuple[list[PeerRow], list[NotRun]]:  # fmt: skip
    sparsity = data.pattern.sparsity
    request = request_of(data, target, folder)
    ready: dict[str, Asker] = {}
    replies: dict[str, dict[str, Any]] = {}
    turns: dict[str, Turns] = {}
    reasons: dict[str, str] = {}
    asked = [peer for peer in peers if target.case.op in peer.ops]
    for peer in asked:
        try:
            worker = worker_of(peer)
            replies[peer.name] = reply = checked(peer, worker, data, threads, request)
        except (PeerError, WrongResultError) as error:
            reasons[peer.name] = str(error)
            continue
        ready[peer.name] = worker
        turns[peer.name] = plan.turns_of(reply["seconds"])
    # The reference was computed on this process's threads.
    wait_until_quiet()
    found, dropped = take_turns(ready, turns, threads)
    reasons |= dropped
    rows = _rows(target, sparsity, threads, data.nnz, asked, found, replies)
    return rows, [
        NotRun(target.name, sparsity, threads, name, reason) for name, reason in reasons.items()
    ]


def _faster(rounds: Rounds, name: str, other: str) -> Quartiles | None:
    """How many times faster than a peer the other one is; None where that did not run."""
    return rounds.speedup(other, over=name) if other in rounds.samples else None


def _rows(
    target: Target, sparsity: float, threads: int, nnz: int, peers: Sequence[Peer],
    found: dict[str, Samples], replies: dict[str, dict[str, Any]],
) -> list[PeerRow]:  # fmt: skip
    rounds = Rounds({name: samples.medians for name, samples in found.items()})
    seconds = {name: Quartiles.of(samples.medians) for name, samples in found.items()}
    dense = [peer.name for peer in peers if peer.role == "dense" and peer.name in found]
    best = min(dense, key=lambda name: seconds[name].median, default="")
    ours = next((peer.name for peer in peers if peer.role == "ours"), "")
    case = target.case
    return [
        PeerRow(
            target=target.name,
            group=target.group,
            op=case.op,
            m=case.m,
            k=case.k,
            n=case.n,
            cold=target.cold,
            sparsity=sparsity,
            nnz=nnz,
            threads=threads,
            peer=peer.name,
            role=peer.role,
            precision=replies[peer.name]["precision"],
            peer_threads=replies[peer.name]["threads"],
            cores=statistics.median(samples.cores),
            quiet=samples.quiet,
            copies=replies[peer.name]["copies"],
            rounds=len(samples.medians),
            seconds=seconds[peer.name],
            minimum=samples.minimum,
            ours_faster=_faster(rounds, peer.name, ours),
            best_faster=_faster(rounds, peer.name, best),
            is_best=peer.name == best,
        )
        for peer in peers
        if (samples := found.get(peer.name)) is not None
    ]
