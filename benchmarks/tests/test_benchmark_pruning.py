"""The pruning suite: a small run of it, its summary, its checks and its file."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import pruning
from benchmarks.pruning import MethodRow, TrainingPlan, checks, summarise
from benchmarks.pruning_network import SmallResNet
from sparseinfer.demo import data


@pytest.mark.parametrize("side", [8, 28])
def test_the_network_has_the_size_that_is_promised(side):
    model = SmallResNet((side, side))
    assert 300_000 < sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model(torch.zeros(2, 1, side, side)).shape == (2, 10)


def test_means_deviations_and_checks_are_of_the_rows():
    rows = [
        MethodRow(method, seed, 0.9, value + 0.01 * seed, 10, 1.0)
        for method, value in (("dense, trained on", 0.9), ("gradual magnitude", 0.88),
                              ("one-shot magnitude", 0.85), ("one-shot random", 0.86))
        for seed in (0, 1)
    ]  # fmt: skip
    summary = summarise(rows)
    assert summary["gradual magnitude"]["accuracy"] == pytest.approx(0.885)
    assert summary["gradual magnitude"]["deviation"] == pytest.approx(0.00707, abs=1e-4)
    verdicts = {check.name: check.holds for check in checks(summary)}
    assert verdicts == {
        "gradual magnitude within 1.0% of dense": False,
        "gradual >= one-shot magnitude": True,
        "magnitude >= random": False,
    }


def test_a_small_run_writes_every_method_with_its_sparsity(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr(
        pruning, "QUICK", TrainingPlan(images=120, seeds=1, dense=1, tune=1, lottery=1)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path / "result.json"
    app = pruning.typer.Typer()
    app.command()(pruning.main)
    try:
        done = CliRunner().invoke(app, ["--quick", "--out", str(out)], catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["schema"] == 1 and found["complete"]
    assert found["command"].endswith("--out result.json --quick")
    zeros = {row["method"]: row["sparsity"] for row in found["rows"]}
    expected = dict.fromkeys(zeros, 0.9)
    expected |= {"dense": 0.0, "dense, trained on": 0.0, "one-shot 2:4": 0.5,
                 "one-shot filters": 0.5}  # fmt: skip
    assert zeros == {name: pytest.approx(value, abs=5e-3) for name, value in expected.items()}
    assert len(zeros) == 11 and len(found["checks"]) == 6
    assert "lottery ticket" in done.output
