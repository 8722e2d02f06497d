"""The workers of the peer suite, with made-up engines: protocol, refusals, crashes; no package."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peer_doubles import PLAN, TARGET, fake

from benchmarks.cases import ConvCase, LinearCase, Pattern
from benchmarks.layer_data import LayerData
from benchmarks.machine import ROOT
from benchmarks.peers.catalogue import PEERS, Peer, Target
from benchmarks.peers.crew import MOST_CRASHES, Crew
from benchmarks.peers.measure import measure
from benchmarks.peers.process import (
    PeerCrashError,
    PeerError,
    own_python,
    worker_command,
    worker_environment,
)
from benchmarks.peers.results import PeerRow
from sparseinfer.timing.rounds import Quartiles

CONV = Target(ConvCase(4, 8, 5, 3))


def fake_command(peer: Peer, threads: int, cache: Path) -> list[str]:
    return worker_command(own_python(), peer.module, peer.engine, threads)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with Crew(1, tmp_path, fake_command, timeout=60.0) as crew:
        yield crew


def run(crew: Crew, folder: Path, *peers: Peer, target: Target = TARGET) -> tuple[
    dict[str, PeerRow], dict[str, str]
]:  # fmt: skip
    rows, not_run = measure(target, 0.5, 1, peers, crew.worker_of, PLAN, folder)
    return {row.peer: row for row in rows}, {item.peer: item.reason for item in not_run}


# ---- worker processes


def test_peers_are_prepared_checked_and_timed_in_their_own_processes(
    crew: Crew, tmp_path: Path
) -> None:
    ours, other = fake("Honest", "ours"), dataclasses.replace(fake("Honest"), name="other")
    rows, reasons = run(crew, tmp_path, ours, other)
    assert not reasons
    assert list(rows) == ["Honest", "other"]
    row = rows["other"]
    assert (row.target, row.m, row.k, row.n, row.sparsity) == (TARGET.name, 24, 16, 3, 0.5)
    assert (row.precision, row.peer_threads, row.copies, row.nnz) == ("float32", 1, 1, 192)
    assert PLAN.floor <= row.rounds <= PLAN.rounds
    assert 0 < row.minimum <= row.seconds.median < 1
    assert row.ours_faster is not None and row.ours_faster.median > 0
    assert row.is_best and not rows["Honest"].is_best
    assert row.best_faster == Quartiles(1.0, 1.0, 1.0)
    # What a library prints is not taken for an answer, and the version comes first.
    assert crew.versions == {"Honest": "honest 1.0", "other": "honest 1.0"}


def test_worker_is_started_once_and_serves_one_layer_after_another(
    crew: Crew, tmp_path: Path
) -> None:
    peer = fake("Honest")
    first = crew.worker_of(peer)
    run(crew, tmp_path, peer)
    rows, _ = run(crew, tmp_path, peer, target=Target(LinearCase(8, 40, 1)))
    assert crew.worker_of(peer) is first
    assert rows["Honest"].m == 8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Wrong", "1 of 72 are wrong"),
        ("Greedy", "expected 1 threads, got 2"),
        ("Fails", "MemoryError: no room"),
        ("Half", "computes in float16"),
        ("CrashesAtStart", "OSError: needs another processor"),
        ("CrashesWhenTimed", "signal 11"),
        ("Missing", "has no attribute 'Missing'"),
    ],
)
def test_a_peer_that_fails_is_named_with_the_reason_and_the_others_go_on(
    name: str, reason: str, crew: Crew, tmp_path: Path
) -> None:
    rows, reasons = run(crew, tmp_path, fake(name), fake("Honest", "ours"))
    assert list(rows) == ["Honest"]
    assert list(reasons) == [name] and reason in reasons[name]
    assert rows["Honest"].best_faster is None
    assert rows["Honest"].ours_faster == Quartiles(1.0, 1.0, 1.0)


def test_a_wrong_result_is_never_timed(tmp_path: Path) -> None:
    asked = []

    class Liar:
        def ask(self, **request: Any) -> dict[str, Any]:
            asked.append(request["do"])
            np.save(request["result"], np.zeros((3, 24), np.float32))
            return {"threads": 1, "precision": "float32", "copies": 1, "seconds": 1e-6}

    rows, not_run = measure(TARGET, 0.5, 1, [fake("Liar")], lambda _: Liar(), PLAN, tmp_path)
    assert (rows, asked) == ([], ["prepare"])
    assert "expected" in not_run[0].reason


def test_a_result_is_the_peers_own_and_nothing_stays_behind(tmp_path: Path) -> None:
    class Writer:
        def __init__(self, writes: bool) -> None:
            self.writes = writes

        def ask(self, **request: Any) -> dict[str, Any]:
            assert not Path(request["result"]).exists()
            if not self.writes:
                raise PeerError("stopped here")
            np.save(request["result"], np.zeros((3, 24), np.float32))
            return {"threads": 1, "precision": "float32", "copies": 1, "seconds": 1e-6}

    peers = [fake("first"), fake("second")]
    _, not_run = measure(
        TARGET, 0.5, 1, peers, lambda peer: Writer(peer.name == "first"), PLAN, tmp_path
    )
    assert [item.peer for item in not_run] == ["first", "second"]
    assert not_run[1].reason == "stopped here"
    assert not os.listdir(tmp_path)


def test_a_narrower_type_is_held_to_its_own_rounding(crew: Crew, tmp_path: Path) -> None:
    rows, reasons = run(crew, tmp_path, fake("Half", "narrow"), fake("Honest", "narrow"))
    assert list(rows) == ["Half"]
    assert rows["Half"].precision == "float16"
    assert not rows["Half"].is_best
    assert reasons == {"Honest": "computes in float32"}


def test_a_peer_without_the_operation_has_no_row_and_a_refusal_has_a_reason(
    crew: Crew, tmp_path: Path
) -> None:
    linear_only = dataclasses.replace(fake("Honest"), ops=("linear",))
    assert run(crew, tmp_path, linear_only, target=CONV) == ({}, {})
    assert run(crew, tmp_path, fake("Honest"), target=CONV) == (
        {},
        {"Honest": "has no convolution"},
    )


def test_a_crashed_worker_is_started_again_but_not_for_ever(crew: Crew, tmp_path: Path) -> None:
    peer = fake("CrashesWhenTimed")
    seen = [run(crew, tmp_path, peer)[1][peer.name] for _ in range(MOST_CRASHES + 1)]
    assert all(reason.startswith("ended by signal 11") for reason in seen[:-1])
    assert seen[-1].startswith(f"given up after {MOST_CRASHES} crashes, the last: ended by signal")


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    with Crew(1, tmp_path, fake_command, timeout=0.5) as crew:
        _, reasons = run(crew, tmp_path, fake("Hangs"))
    assert reasons == {"Hangs": "no answer in 0.5 s"}


def test_workers_are_gone_when_their_crew_is(tmp_path: Path) -> None:
    with Crew(1, tmp_path, fake_command) as crew:
        held = crew.worker_of(fake("Honest"))
    with pytest.raises((PeerCrashError, ValueError)):
        held.ask(do="time", inner=1, samples=1, warm=0.0)


def test_interpreter_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    def nowhere(peer: Peer, threads: int, cache: Path) -> list[str]:
        return worker_command(tmp_path / "python", peer.module, peer.engine, threads)

    with Crew(1, tmp_path, nowhere) as crew:
        _, reasons = run(crew, tmp_path, fake("Honest"))
    assert reasons["Honest"].startswith("cannot be started")


def test_what_is_no_answer_is_a_reason(tmp_path: Path) -> None:
    def chatter(peer: Peer, threads: int, cache: Path) -> list[str]:
        return [str(own_python()), "-c", "print('hello, world'); input()"]

    with Crew(1, tmp_path, chatter) as crew:
        _, reasons = run(crew, tmp_path, fake("Honest"))
    assert reasons == {"Honest": "expected an answer in JSON, got 'hello, world'"}


def test_peer_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    named = {peer.name: peer for peer in PEERS}
    with Crew(1, tmp_path) as crew:
        _, reasons = run(crew, tmp_path, named["openvino"], named["deepsparse"])
    assert reasons["openvino"] == "not installed, try python -m benchmarks.peers --setup"
    assert reasons["deepsparse"].endswith("--setup --deepsparse")


def test_workers_end_when_their_parent_is_gone(tmp_path: Path) -> None:
    """The end of its requests is all that a worker needs."""
    argv = fake_command(fake("Honest"), 1, tmp_path)
    done = subprocess.run(
        argv, input="", capture_output=True, text=True, env=worker_environment(1), cwd=ROOT,
        timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"version": "honest 1.0"}
    assert "a library's banner" in done.stderr


def test_rows_name_the_best_dense_peer_and_the_ratios_to_it(tmp_path: Path) -> None:
    figures = {"ours": 1.0, "eager": 4.0, "lib": 2.0, "csr": 0.5}

    class Known:
        def __init__(self, median: float) -> None:
            self.median = median

        def ask(self, **request: Any) -> dict[str, Any]:
            if request["do"] == "time":
                return {
                    "median": self.median, "minimum": self.median, "cores": 1.0, "quiet": True,
                }  # fmt: skip
            np.save(request["result"], torch.nn.functional.linear(
                data.x, data.weight, data.bias).numpy())  # fmt: skip
            return {"threads": 1, "precision": "float32", "copies": 1, "seconds": self.median}

    data = LayerData(TARGET.case, Pattern(0.5))
    roles = {"ours": "ours", "csr": "sparse"}
    peers = [fake(name, roles.get(name, "dense")) for name in figures]
    rows, _ = measure(TARGET, 0.5, 1, peers, lambda peer: Known(figures[peer.name]), PLAN, tmp_path)
    assert [row.peer for row in rows if row.is_best] == ["lib"]
    ratios = {row.peer: (row.ours_faster, row.best_faster) for row in rows}
    medians = {name: tuple(one and one.median for one in pair) for name, pair in ratios.items()}
    # A sparse peer is never the best dense one, however fast.
    assert medians == {"ours": (1, 0.5), "eager": (4, 2), "lib": (2, 1), "csr": (0.5, 0.25)}


# ---- the peers of PyTorch's own environment


@pytest.mark.parametrize(
    "name",
    ["sparseinfer", "torch", "torch.sparse", pytest.param("torch.compile", marks=pytest.mark.slow)],
)
def test_peers_that_need_no_package_are_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real engines, warm and cold, and the second of two weights of one shape."""
    monkeypatch.setattr("benchmarks.peers.measure.COLD_BYTES", 4 * 24 * 16 * 2)
    peer = next(peer for peer in PEERS if peer.name == name)
    targets = [TARGET, Target(TARGET.case, cold=True), CONV]
    with Crew(2, tmp_path) as crew:
        for target, sparsity in itertools.product(targets, (0.5, 0.9)):
            rows, not_run = measure(target, sparsity, 2, [peer], crew.worker_of, PLAN, tmp_path)
            assert not not_run
            assert len(rows) == (target.case.op in peer.ops)
            assert all((row.copies > 2) == target.cold for row in rows)
            assert all(row.peer_threads == 2 for row in rows)
