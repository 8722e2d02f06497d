"""What the peer suite reports: result file, tables, plot, environments and the command line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer
from peer_doubles import PLAN, TARGET, fake

from benchmarks.cases import LinearCase
from benchmarks.machine import ROOT
from benchmarks.peers import __main__ as command
from benchmarks.peers import catalogue, environments, table
from benchmarks.peers.catalogue import PEERS, Target
from benchmarks.peers.measure import COLD_BYTES, measure
from benchmarks.peers.plot import draw
from benchmarks.peers.process import PeerError
from benchmarks.peers.results import NotRun, PeerResults, PeerRow
from sparseinfer.timing.rounds import Quartiles

# ---- results, tables, plot


def made_up_row(peer: str, ours: float, best: float, **changes: Any) -> PeerRow:
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
    assert PeerResults.from_json(results.to_json()) == results


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
    text = table.as_markdown(made_up_results(ROWS, not_run))
    assert "- dnn (2 measurements): not installed" in text
    assert "- csr (a, 1 measurement): ended by signal 11" in text
    assert "sparseinfer 0.1.0" in text and "not for quoting" not in text
    partial = dataclasses.replace(made_up_results(ROWS), complete=False)
    assert "not for quoting" in table.as_markdown(partial)


def test_report_names_peers_whose_threads_did_not_sleep() -> None:
    rows = [*ROWS, made_up_row("csr", 1.0, 1.0, quiet=False)]
    assert "Threads of csr were still awake" in table.introduction(made_up_results(rows))
    assert "awake" not in table.introduction(made_up_results(ROWS))


def test_report_of_a_run_in_which_nothing_ran() -> None:
    assert "not installed" in table.as_markdown(
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
    options = command.options_of("all", "all", "0.9", "1,2", tmp_path / "out.json", True, True)
    text = " ".join(options)
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
    results = PeerResults.read(out)
    assert results.complete
    assert [(row.peer, row.sparsity) for row in results.rows] == [
        ("Honest", 0.5), ("other", 0.5), ("Honest", 0.9), ("other", 0.9),
    ]  # fmt: skip
    assert {item.peer for item in results.not_run} == {"CrashesAtStart"}
    assert str(tmp_path) not in json.dumps(results.settings)
    assert os.listdir(tmp_path) == ["out.json"]


def test_an_interrupted_run_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(target: Target, sparsity: float, *rest: Any) -> Any:
        if sparsity == 0.9:
            raise KeyboardInterrupt
        return measure(target, sparsity, *rest)

    monkeypatch.setattr(command, "PEERS", (fake("Honest", "ours"),))
    monkeypatch.setattr(command, "TARGETS", (TARGET,))
    monkeypatch.setattr(command, "PLAN", PLAN)
    monkeypatch.setattr(command, "measure", interrupted)
    out = tmp_path / "out.json"
    with pytest.raises(typer.Exit) as ending:
        command.main("all", "all", "0.5,0.9", "1", out, False, False, False, tmp_path)
    assert ending.value.exit_code == 130
    results = PeerResults.read(out)
    assert [row.sparsity for row in results.rows] == [0.5]
    assert not results.complete
