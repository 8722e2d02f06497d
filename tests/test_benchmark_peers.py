"""The peer suite with made-up engines: protocol, turns, refusals, crashes, tables; no package."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from benchmarks.cases import ConvCase, LinearCase, Pattern
from benchmarks.machine import ROOT
from benchmarks.peers import __main__ as command
from benchmarks.peers import catalogue, environments, table, worker
from benchmarks.peers.catalogue import PEERS, Peer, Target
from benchmarks.peers.crew import MOST_CRASHES, Crew
from benchmarks.peers.engines.interface import Layer, Prepared
from benchmarks.peers.measure import COLD_BYTES, measure
from benchmarks.peers.plot import draw
from benchmarks.peers.process import (
    PeerCrashError,
    PeerError,
    own_python,
    worker_command,
)
from benchmarks.peers.results import NotRun, PeerResults, PeerRow, from_json
from benchmarks.peers.rounds import TurnPlan, Turns, take_turns
from benchmarks.problems import Problem, WrongResultError
from benchmarks.results import to_json
from benchmarks.timing import Quartiles

TARGET = Target(LinearCase(24, 16, 3))
CONV = Target(ConvCase(4, 8, 5, 3))
PLAN = TurnPlan(rounds=3, floor=2, sample=1e-5, samples=2, warm=0.0, turn=1e-3, budget=1e-2)


def fake(name: str, role: str = "dense") -> Peer:
    return Peer(name, "tests.fake_peer", name, None, role)


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


def test_peer_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    named = {peer.name: peer for peer in PEERS}
    with Crew(1, tmp_path) as crew:
        _, reasons = run(crew, tmp_path, named["openvino"], named["deepsparse"])
    assert reasons["openvino"] == "not installed, try python -m benchmarks.peers --setup"
    assert reasons["deepsparse"].endswith("--setup --deepsparse")


# ---- the child's side


class OneLayer:
    """An engine whose calls are written down."""

    def __init__(self, threads: int = 1) -> None:
        self.log: list[int] = []

    def version(self) -> str:
        return "one"

    def prepare(self, layer: Layer) -> Prepared:
        calls = [lambda i=i: self.log.append(i) for i in range(layer.copies(layer.weight.nbytes))]
        return Prepared(calls, lambda: np.zeros(layer.out_shape, np.float32), 1)


def prepared_server(
    tmp_path: Path, cold_bytes: int
) -> tuple[worker.Server, OneLayer, dict[str, Any]]:
    weight, bias, x = np.ones((4, 8), np.float32), np.ones(4, np.float32), np.ones((2, 8))
    for name, array in (("weight", weight), ("bias", bias), ("x", x.astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", array)
    engine = OneLayer()
    server = worker.Server(engine)
    reply = server.answer(
        {
            "do": "prepare", "arrays": str(tmp_path),
            "result": str(tmp_path / "y.npy"), "op": "linear", "stride": 1, "padding": 0,
            "cold_bytes": cold_bytes,
        }
    )  # fmt: skip
    return server, engine, reply


def test_result_is_written_and_every_copy_runs_before_any_is_timed(tmp_path: Path) -> None:
    _, engine, reply = prepared_server(tmp_path, cold_bytes=512)
    assert np.load(tmp_path / "y.npy").shape == (2, 4)
    # 128 bytes of weight: four copies fill 512 bytes, a fifth exceeds them, one more is for turns.
    assert reply["copies"] == 6 and engine.log[:6] == [0, 1, 2, 3, 4, 5]
    assert reply["seconds"] > 0 and reply["quiet"]


def test_turns_go_on_with_the_copy_after_the_last(tmp_path: Path) -> None:
    server, engine, _ = prepared_server(tmp_path, cold_bytes=128)
    assert set(engine.log) == {0, 1, 2}
    next_copy = (engine.log[-1] + 1) % 3
    engine.log.clear()
    for _ in range(2):
        reply = server.answer({"do": "time", "inner": 2, "samples": 2, "warm": 0.0})
        assert 0 < reply["minimum"] <= reply["median"]
    assert engine.log == [(next_copy + i) % 3 for i in range(8)]


def test_warm_up_calls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def takes(seconds: float) -> Callable[[], object]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    calls = iter([takes(seconds) for seconds in (9.0, 5.0, 1.0, 3.0, 2.0, 4.0, 8.0)])
    reply = worker.take_turn(calls, inner=2, samples=2, warm=10.0)
    assert (reply["median"], reply["minimum"]) == (2.5, 2.0)


def test_busy_cores_are_measured() -> None:
    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    busy = worker.take_turn(iter([work] * 3), inner=1, samples=3, warm=0.0)["cores"]
    idle = worker.take_turn(iter([lambda: time.sleep(0.05)] * 3), 1, 3, 0.0)["cores"]
    assert idle < busy and idle < 0.5


def test_arrays_with_pickled_objects_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "weight.npy", np.ones((1, 1)))
    np.save(tmp_path / "bias.npy", np.array([print], dtype=object))
    request = {"do": "prepare", "arrays": str(tmp_path), "op": "linear"}
    assert "allow_pickle=False" in worker.Server(OneLayer()).answer(request)["error"]


def test_shape_of_a_convolution_result_is_that_of_torch() -> None:
    for case in (CONV.case, ConvCase(4, 8, 9, 3, stride=2), ConvCase(4, 8, 6, 1)):
        problem = Problem(case, Pattern(0.5))
        weight, x = problem.weight.numpy(), problem.x.numpy()
        layer = Layer("conv", weight, weight[:, 0, 0, 0], x, case.stride, case.padding, 0)
        assert layer.out_shape == problem.dense(problem.x, problem.weight, problem.bias).shape


# ---- turns


class Scripted:
    """Answers with the figures of a list, a round after the other."""

    def __init__(self, name: str, log: list[str], medians: list[float], cores: float = 1.0) -> None:
        self.name, self.log, self.medians, self.cores = name, log, iter(medians), cores

    def ask(self, **request: Any) -> dict[str, Any]:
        self.log.append(self.name)
        median = next(self.medians, None)
        if median is None:
            raise PeerError("out of figures")
        return {"median": median, "minimum": median / 2, "cores": self.cores}


def test_peers_take_turns_and_a_slow_one_takes_fewer() -> None:
    log: list[str] = []
    peers = {name: Scripted(name, log, [1.0] * 4) for name in "ABC"}
    turns = {"A": Turns(1, 1, 0.0, 4), "B": Turns(1, 1, 0.0, 2), "C": Turns(1, 1, 0.0, 4)}
    found, dropped = take_turns(peers, turns, threads=1)
    assert "".join(log) == "ABCABCACAC"
    assert not dropped
    assert [len(found[name].medians) for name in "ABC"] == [4, 2, 4]


def test_ratio_is_taken_within_a_round() -> None:
    peers = {
        "A": Scripted("A", [], [1.0, 10.0, 100.0]),
        "B": Scripted("B", [], [3.0, 30.0]),
    }
    found, _ = take_turns(peers, {"A": Turns(1, 1, 0, 3), "B": Turns(1, 1, 0, 2)}, threads=1)
    assert found["B"].ratio_to(found["A"]) == [3.0, 3.0]
    assert found["A"].minimum == 0.5


def test_a_peer_that_fails_in_its_turn_falls_out() -> None:
    log: list[str] = []
    peers = {"A": Scripted("A", log, [1.0] * 3), "B": Scripted("B", log, [1.0])}
    found, dropped = take_turns(peers, dict.fromkeys("AB", Turns(1, 1, 0, 3)), threads=1)
    assert "".join(log) == "ABABA"
    assert list(found) == ["A"]
    assert dropped == {"B": "out of figures"}


def test_a_peer_that_keeps_more_cores_busy_than_asked_falls_out() -> None:
    peers = {"A": Scripted("A", [], [1.0], cores=1.9), "B": Scripted("B", [], [1.0], cores=1.1)}
    turns = dict.fromkeys("AB", Turns(1, 1, 0, 1))
    found, dropped = take_turns(peers, turns, threads=1)
    assert list(found) == ["B"]
    assert dropped == {"A": "expected at most 1 busy cores, got 1.9"}
    peers["A"] = Scripted("A", [], [1.0], cores=1.9)
    peers["B"] = Scripted("B", [], [1.0])
    assert list(take_turns(peers, turns, threads=2)[0]) == ["A", "B"]


def test_plan_repeats_short_calls_and_spares_long_ones() -> None:
    plan = TurnPlan(
        rounds=7, floor=3, sample=1e-3, samples=5, warm=2e-3, turn=2e-2, budget=0.4
    )  # fmt: skip
    assert plan.turns_of(1e-5) == Turns(inner=100, samples=5, warm=2e-3, rounds=7)
    assert plan.turns_of(1e-2) == Turns(inner=1, samples=2, warm=2e-3, rounds=7)
    assert plan.turns_of(0.1) == Turns(inner=1, samples=1, warm=0.0, rounds=4)
    assert plan.turns_of(2.0) == Turns(inner=1, samples=1, warm=0.0, rounds=3)


# ---- the bound


def test_bound_of_a_narrow_type_is_wider_but_no_licence() -> None:
    problem = Problem(LinearCase(16, 32, 4), Pattern(0.5))
    exact = problem.dense(problem.x, problem.weight, problem.bias)
    rounded = problem.dense(
        problem.x.bfloat16().float(), problem.weight.bfloat16().float(), problem.bias
    )
    problem.verify("rounded", rounded, 2.0**-9)
    with pytest.raises(WrongResultError):
        problem.verify("rounded", rounded)
    with pytest.raises(WrongResultError):
        problem.verify("shifted", exact + 0.1, 2.0**-9)


# ---- results, tables, plot


def made_up_row(peer: str, ours: float, best: float, **changes: Any) -> PeerRow:
    role = {"ours": "ours", "eager": "dense", "lib": "dense"}.get(peer, "sparse")
    row = PeerRow(
        target="linear 8x8 N=128", group="linear N>=128", op="linear", m=8, k=8, n=128,
        cold=False, sparsity=0.9, nnz=6, threads=1, peer=peer, role=role, precision="float32",
        peer_threads=1, cores=1.0, copies=1, rounds=7,
        seconds=Quartiles(1e-3 * ours, 1.1e-3 * ours, 1.2e-3 * ours), minimum=9e-4 * ours,
        ours_faster=Quartiles(ours, ours, ours), best_faster=Quartiles(best, best, best),
        is_best=peer == "lib",
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def made_up_results(rows: list[PeerRow], not_run: list[NotRun] | None = None) -> PeerResults:
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


ROWS = [
    made_up_row("ours", 1.0, 0.5),
    made_up_row("eager", 4.0, 2.0),
    made_up_row("lib", 2.0, 1.0),
    made_up_row("csr", 8.0, 4.0),
]


def test_result_file_is_read_as_it_was_written() -> None:
    rows = [*ROWS, made_up_row("csr", 1.0, 1.0, ours_faster=None, best_faster=None)]
    results = made_up_results(rows, [NotRun("linear", 0.9, 1, "csr", "gone")])
    assert from_json(to_json(results)) == results


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"schema": 0}', '{"schema": 1, "rows": [{}], "not_run": []}']
)
def test_a_file_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a result file"):
        from_json(text)


def test_rows_name_the_best_dense_peer_and_the_ratios_to_it(tmp_path: Path) -> None:
    figures = {"ours": 1.0, "eager": 4.0, "lib": 2.0, "csr": 0.5}

    class Known:
        def __init__(self, median: float) -> None:
            self.median = median

        def ask(self, **request: Any) -> dict[str, Any]:
            if request["do"] == "time":
                return {"median": self.median, "minimum": self.median, "cores": 1.0}
            np.save(request["result"], torch.nn.functional.linear(
                problem.x, problem.weight, problem.bias).numpy())  # fmt: skip
            return {"threads": 1, "precision": "float32", "copies": 1, "seconds": self.median}

    problem = Problem(TARGET.case, Pattern(0.5))
    roles = {"ours": "ours", "csr": "sparse"}
    peers = [fake(name, roles.get(name, "dense")) for name in figures]
    rows, _ = measure(TARGET, 0.5, 1, peers, lambda peer: Known(figures[peer.name]), PLAN, tmp_path)
    assert [row.peer for row in rows if row.is_best] == ["lib"]
    ratios = {row.peer: (row.ours_faster, row.best_faster) for row in rows}
    medians = {name: tuple(one and one.median for one in pair) for name, pair in ratios.items()}
    # A sparse peer is never the best dense one, however fast.
    assert medians == {"ours": (1, 0.5), "eager": (4, 2), "lib": (2, 1), "csr": (0.5, 0.25)}


def test_table_shows_wins_and_losses_alike() -> None:
    other = "linear 9x9 N=128"
    rows = [
        *ROWS,
        made_up_row("lib", 0.5, 1.0, target=other),
        made_up_row("lib", 3.0, 1.0, threads=2),
        made_up_row("csr", 0.25, 1.0, sparsity=0.95),
    ]
    text = table.peers_table(made_up_results(rows))
    assert "| best dense fp32 | 1.00 / 3.00 | - / - |" in text
    assert (
        "| best dense fp32: layers where ours is slower | 1 of 2 / 0 of 1 | 0 of 0 / 0 of 0 |"
        in text
    )
    assert "| csr | 8.00 / - | 0.25 / - |" in text
    assert "| csr: layers where ours is slower | 0 of 1 / 0 of 0 | 1 of 1 / 0 of 0 |" in text
    assert "| linear N>=128 | 1.00 / 3.00 | - / - |" in table.groups_table(made_up_results(rows))


def test_layers_table_has_medians_minima_and_both_ratios() -> None:
    text = table.layers_table(made_up_results(ROWS), 1)
    assert "| linear 8x8 N=128 | csr | 8.8 (7.2) 8.00 4.00 |" in text
    assert "| linear 8x8 N=128 | lib | **2.2 (1.8) 2.00 1.00** |" in text


def test_report_says_who_did_not_run_and_when_a_run_is_partial() -> None:
    not_run = [NotRun(name, 0.9, 1, "dnn", "not installed") for name in ("a", "b")]
    not_run.append(NotRun("a", 0.9, 1, "csr", "ended by signal 11"))
    text = table.report(made_up_results(ROWS, not_run))
    assert "- dnn (2 measurements): not installed" in text
    assert "- csr (a, 1 measurement): ended by signal 11" in text
    assert "sparseinfer 0.1.0" in text and "not for quoting" not in text
    partial = dataclasses.replace(made_up_results(ROWS), complete=False)
    assert "not for quoting" in table.report(partial)


def test_report_of_a_run_in_which_nothing_ran() -> None:
    assert "not installed" in table.report(
        made_up_results([], [NotRun("a", 0.9, 1, "dnn", "not installed")])
    )


def test_plot_is_a_png(tmp_path: Path) -> None:
    rows = [
        made_up_row(peer, 1.0, 1 - sparsity, sparsity=sparsity, threads=threads, op=op)
        for peer in ("ours", "lib", "csr")
        for sparsity in (0.5, 0.9)
        for threads in (1, 2)
        for op in ("linear", "conv")
    ]
    draw(made_up_results(rows), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="got none"):
        draw(made_up_results([]), tmp_path / "none.png")


# ---- environments and the command line


def test_deepsparse_runs_only_where_it_is_asked_for() -> None:
    assert catalogue.OPT_IN not in [peer.name for peer in command.parse_peers("all", False)]
    assert catalogue.OPT_IN in [peer.name for peer in command.parse_peers("all", True)]
    with pytest.raises(typer.BadParameter, match="evaluation"):
        command.parse_peers("sparseinfer,deepsparse", False)
    # Its licence forbids more: no extra and no step of continuous integration may bring it.
    for name in ("pyproject.toml", "Makefile", ".ci/run"):
        path = ROOT / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        assert "deepsparse" not in text.partition("[tool.")[0]


def test_chosen_peers_and_layers_must_exist() -> None:
    names = [peer.name for peer in command.parse_peers("torch,sparseinfer", False)]
    assert names == ["sparseinfer", "torch"]
    with pytest.raises(typer.BadParameter, match="got 'tf'"):
        command.parse_peers("tf", False)
    chosen = command.parse_targets("conv 3x3,N=32", quick=False)
    assert len(chosen) == 6 and chosen[-1].case == LinearCase(4096, 4096, 32)
    # Whole words: neither N = 128 nor 11008x4096.
    chosen = command.parse_targets("4096x4096 N=1", quick=False)
    assert [target.name for target in chosen] == [
        "linear 4096x4096 N=1", "linear 4096x4096 N=1 cold",
    ]  # fmt: skip
    with pytest.raises(typer.BadParameter, match="got '5x5'"):
        command.parse_targets("5x5", quick=False)
    for text in ("", "1", "-0.1", "half"):
        with pytest.raises(typer.BadParameter, match="expected sparsities"):
            command.parse_sparsities(text)


def test_every_layer_has_a_name_of_its_own_and_the_quick_ones_are_among_them() -> None:
    names = [target.name for target in catalogue.TARGETS]
    assert len(set(names)) == len(names)
    assert set(catalogue.QUICK) <= set(catalogue.TARGETS)
    assert any(target.cold for target in catalogue.TARGETS) and COLD_BYTES > 64 * 2**20


def test_an_environment_counts_only_when_it_was_finished(tmp_path: Path) -> None:
    folder = tmp_path / "scipy"
    peer = next(peer for peer in PEERS if peer.environment == "scipy")
    folder.mkdir()
    with pytest.raises(PeerError, match="not installed"):
        environments.python_of(peer, tmp_path)
    (folder / environments.READY).write_text("numpy\nscipy", encoding="utf-8")
    assert environments.python_of(peer, tmp_path).is_relative_to(folder)
    # Other versions than those that are wanted now are made anew.
    (folder / environments.READY).write_text("numpy\nscipy==1.0", encoding="utf-8")
    assert not environments.is_ready(folder, environments.PACKAGES["scipy"])


def test_setup_goes_on_after_an_environment_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def install(folder: Path, packages: object) -> None:
        if folder.name == "openvino":
            raise PeerError("no such package")
        made.append(folder.name)

    monkeypatch.setattr(environments, "install", install)
    said: list[str] = []
    assert not environments.set_up(["openvino", "scipy"], tmp_path, said.append)
    assert made == ["scipy"]
    assert "openvino: failed: no such package" in said
    assert environments.set_up(["scipy"], tmp_path, said.append)


def test_command_repeats_the_run_and_shows_no_folder(tmp_path: Path) -> None:
    text = command.describe_command("all", "all", "0.9", "1,2", tmp_path / "out.json", True, True)
    assert str(tmp_path) not in text
    assert text.endswith("--sparsity 0.9 --threads 1,2 --out out.json --quick --deepsparse")


def test_one_command_from_peers_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run with made-up engines, one of which crashes: status 0 and a file that tells."""
    peers = (fake("Honest", "ours"), dataclasses.replace(fake("Honest"), name="other"),
             fake("CrashesAtStart"))  # fmt: skip
    monkeypatch.setattr(command, "PEERS", peers)
    monkeypatch.setattr(command, "TARGETS", (TARGET,))
    monkeypatch.setattr(command, "PLAN", PLAN)
    out = tmp_path / "out.json"
    command.main("all", "all", "0.5,0.9", "1", out, False, False, False, tmp_path)
    results = from_json(out.read_text(encoding="utf-8"))
    assert results.complete
    assert [(row.peer, row.sparsity) for row in results.rows] == [
        ("Honest", 0.5), ("other", 0.5), ("Honest", 0.9), ("other", 0.9),
    ]  # fmt: skip
    assert {item.peer for item in results.not_run} == {"CrashesAtStart"}
    assert str(tmp_path) not in json.dumps(results.settings)
    assert os.listdir(tmp_path) == ["out.json"]
