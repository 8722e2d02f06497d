"""The pruning suite: a small run of it, its summary, its checks and its file."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import pruning, pruning_structures
from benchmarks.pruning import MethodRow, TrainingPlan, checks, summarise
from benchmarks.pruning_network import SmallResNet
from benchmarks.pruning_structures import StructurePlan, StructureResults, StructureRow
from sparseinfer import report
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


def small_run(monkeypatch, tmp_path, *flags):
    """A quick run on digits: the file that it wrote, and its output."""
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path / "result.json"
    app = pruning.typer.Typer()
    app.command()(pruning.main)
    try:
        done = CliRunner().invoke(
            app, [*flags, "--quick", "--out", str(out)], catch_exceptions=False
        )
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    return out, done.output


def test_a_small_run_writes_every_method_with_its_sparsity(monkeypatch, tmp_path):
    monkeypatch.setattr(
        pruning, "QUICK", TrainingPlan(images=120, seeds=1, dense=1, tune=1, lottery=1)
    )
    out, output = small_run(monkeypatch, tmp_path)
    found = json.loads(out.read_text())
    assert found["schema"] == 1 and found["complete"]
    assert found["command"].endswith("--out result.json --quick")
    zeros = {row["method"]: row["sparsity"] for row in found["rows"]}
    expected = dict.fromkeys(zeros, 0.9)
    expected |= {"dense": 0.0, "dense, trained on": 0.0, "one-shot 2:4": 0.5,
                 "one-shot filters": 0.5}  # fmt: skip
    assert zeros == {name: pytest.approx(value, abs=5e-3) for name, value in expected.items()}
    assert len(zeros) == 11 and len(found["checks"]) == 6
    assert "lottery ticket" in output


def structure_rows(structure, float32, int8, tuned):
    """Two seeds of a structure; the second is a point better throughout."""
    return [
        StructureRow(seed, structure, 0.9, last, 0.9, float32 + 0.01 * seed, own + 0.01 * seed, 1.0)
        for seed in (0, 1)
        for last, own in zip(pruning_structures.LAST_WAYS, (int8, tuned), strict=True)
    ]


def test_structures_are_summed_up_over_seeds_and_losses_seed_by_seed():
    rows = structure_rows("unstructured", 0.9, 0.88, 0.895) + structure_rows("4x1", 0.8, 0.8, 0.81)
    rows.append(StructureRow(2, "4x1", 0.9, "float32", 0.9, 0.1, 0.1, 1.0))  # half of a seed
    first, second = pruning_structures.summarise(rows)
    assert (first.structure, second.structure) == ("unstructured", "4x1")
    assert first.mean["float32"] == pytest.approx(0.905) and first.mean["int8"] == pytest.approx(
        0.885
    )
    assert first.deviation["float32"] == pytest.approx(0.00707, abs=1e-4)
    assert first.mean["int8 loses"] == pytest.approx(0.02) and first.mean[
        "tuned loses"
    ] == pytest.approx(0.005)
    assert first.deviation["int8 loses"] == pytest.approx(0.0)
    assert second.seeds == 2 and second.mean["float32"] == pytest.approx(0.805)


def test_a_small_study_of_structures_writes_each_in_float32_and_int8(monkeypatch, tmp_path):
    plan = StructurePlan(images=120, seeds=1, dense=3, prune=6, last=1)
    monkeypatch.setattr(pruning_structures, "QUICK", plan)
    monkeypatch.setattr(pruning_structures, "SPARSITIES", (0.5,))
    out, output = small_run(monkeypatch, tmp_path, "--structures")
    found = StructureResults.read(out)
    assert found.complete and found.command.endswith("--structures --out result.json --quick")
    assert [(row.structure, row.last) for row in found.rows] == [
        (structure, last)
        for structure in ("unstructured", "4x1", "1x4")
        for last in ("float32", "fake quantisation")
    ]
    assert all(row.sparsity == pytest.approx(0.5, abs=1e-4) for row in found.rows)
    assert len(found.dense) == 1 and len(found.summary) == 3
    assert "dense, trained as long" in output


@pytest.mark.parametrize("structure", ["unstructured", "4x1"])
def test_a_study_s_masks_hold_to_the_end_and_every_layer_is_int8(monkeypatch, tmp_path, structure):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    plan = StructurePlan(images=120, seeds=1, dense=2, prune=5, last=2)
    study = pruning_structures.Study(data.load(None, 0, plan.images), plan, 0)
    model, pruner = study.pruned(structure, 0.75)
    zeros = {name: int((~mask).sum()) for name, mask in pruner.masks.items()}
    for last in pruning_structures.LAST_WAYS:
        trained = study.trained_on(model, pruner.masks, last)
        weights = dict(trained.named_parameters())
        assert {name: int((weights[name] == 0).sum()) for name in zeros} == zeros
        assert not torch.equal(weights["hidden.weight"], model.hidden.weight)
        layers = report(study.int8(trained)).layers
        assert len(layers) == 6 and {layer.weights for layer in layers} == {"int8"}
