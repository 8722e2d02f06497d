"""The benchmark of torch's operators and ours in turns: what it calls, counts and writes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import targets, threads
from benchmarks.cases import ConvCase, LinearCase
from sparseinfer.timing.rounds import Plan

CASES = (LinearCase(64, 48, 40), ConvCase(4, 8, 9, 3))


def test_both_contenders_make_the_same_calls() -> None:
    order: list[str] = []
    for contender in (threads.apart, threads.in_turns):
        contender(lambda: order.append("a"), lambda: order.append("b"))()
    turns = threads.TURNS
    assert "".join(order) == "a" * turns + "b" * turns + "ab" * turns


@pytest.mark.skipif(not threads.os_threads(), reason="this system does not list its threads")
def test_threads_that_come_or_go_are_counted() -> None:
    stop = threading.Event()
    started: list[threading.Thread] = []

    def run() -> None:
        started.append(threading.Thread(target=stop.wait))
        started[-1].start()

    try:
        # The first call is for warming up: what it starts is there already.
        assert threads.threads_changed(run, times=3) == 3
    finally:
        stop.set()
        for thread in started:
            thread.join()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_layer_is_verified(
    case: LinearCase | ConvCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, packed, call = threads.sparse_layer(case)
    problem.verify("again", call())  # type: ignore[arg-type]
    assert packed.handle.nnz == problem.nnz
    monkeypatch.setattr(threads.SparseLinear, "forward", lambda self, x: torch.zeros(40, 64))
    monkeypatch.setattr(threads.SparseConv2d, "forward", lambda self, x: torch.zeros(1, 8, 9, 9))
    with pytest.raises(RuntimeError, match="are wrong"):
        threads.sparse_layer(case)


@pytest.mark.parametrize(("changed", "status"), [(0, 0), (2, 1)])
def test_the_result_file(
    changed: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = threads.torch_operators()[0]
    monkeypatch.setattr(threads, "torch_operators", lambda: [operator])
    monkeypatch.setattr(threads, "OURS", CASES)
    monkeypatch.setattr(threads, "QUICK_PLAN", Plan(rounds=3, floor=3, least=0.0, budget=0.01))
    monkeypatch.setattr(threads, "threads_changed", lambda run: changed)
    app = threads.typer.Typer()
    app.command()(threads.main)
    before = torch.get_num_threads()
    out = tmp_path / "threads.json"
    done = CliRunner().invoke(app, ["--threads", "1,2", "--quick", "--out", str(out)])
    assert done.exit_code == status, done.output
    assert torch.get_num_threads() == before
    results = threads.ThreadResults.read(out)
    assert results.complete is not bool(changed)
    assert len(results.failures) == (len(results.rows) if changed else 0)
    assert len(results.rows) == 2 * len(CASES)
    assert {row.threads for row in results.rows} == {1, 2}
    assert [check.name for check in results.summary] == [targets.THREADS] * 2
    assert results.command.endswith("--threads 1,2 --out threads.json --quick")
