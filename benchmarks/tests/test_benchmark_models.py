"""The model benchmarks: packages, pruning, comparison and command, on tiny stand-ins."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks.layer_data import EPS, WrongResultError
from benchmarks.models import __main__ as command
from benchmarks.models.compare import bound, compare
from benchmarks.models.measure import left_dense, measure, pruned
from benchmarks.models.packages import MissingPackageError, package_file, require
from benchmarks.models.pruning import prunable, prune, settle_batch_norms
from benchmarks.models.rows import ModelResults, Skipped
from benchmarks.models.workload import Inputs, Workload, channels_last
from sparseinfer import convert_to_sparse, report
from sparseinfer.demo.sizes import bytes_in_memory
from sparseinfer.timing.rounds import Plan

ONE_ROUND = Plan(rounds=1, floor=1, sample=0.0, least=0.0, budget=0.0)


def run(model: nn.Module, inputs: Inputs) -> Tensor:
    y: Tensor = model(inputs["input"])
    return y


def mlp_workload() -> Workload:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    return Workload(model, {"input": torch.randn(16, 64)}, "16 rows", True, run=run, kept=("2",))


def conv_workload() -> Workload:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3)).eval()
    inputs = {"input": torch.randn(1, 3, 12, 12)}
    return Workload(model, inputs, "1 image", False, run=run, kept=("0",), images=True)


class Babbler(nn.Module):
    """Writes three tokens, each the likeliest after the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).relu())


def write(model: nn.Module, inputs: Inputs) -> Tensor:
    tokens = inputs["tokens"]
    for _ in range(3):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


def babbler_workload() -> Workload:
    return Workload(
        Babbler().eval(),
        {"tokens": torch.tensor([[1, 2]])},
        "3 tokens",
        True,
        run=write,
        logits=lambda model, inputs, tokens: model(tokens),
        examples=(torch.tensor([[1]]),),
    )


# ---- packages


@pytest.fixture
def unimportable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported, with a file in a folder."""
    folder = tmp_path / "unimportable_weights"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('it was imported')\n")
    (folder / "data" / "w.bin").write_bytes(b"1")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_files_are_found_without_importing_their_package(unimportable: Path) -> None:
    found = package_file("unimportable_weights", "data", "w.bin", pip="pip install x")
    assert found == unimportable / "data" / "w.bin"


@pytest.mark.parametrize(
    ("module", "file"), [("no_such_package_of_weights", "w.bin"), ("unimportable_weights", "v.bin")]
)
@pytest.mark.usefixtures("unimportable")
def test_what_is_missing_is_said_with_the_pip_command(module: str, file: str) -> None:
    with pytest.raises(MissingPackageError, match=f"{module}.*try: pip install --no-deps x"):
        package_file(module, file, pip="pip install --no-deps x")


def test_every_required_package_has_to_be_there() -> None:
    require("torch", pip="pip install torch")
    with pytest.raises(MissingPackageError, match="no_such_package_of_weights"):
        require("torch", "no_such_package_of_weights", pip="pip install it")


# ---- pruning


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        self.embedding = nn.Embedding(9, 8)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.turned = transformers.pytorch_utils.Conv1D(8, 8)
        self.lstm = nn.LSTM(8, 8)
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 9)
        self.tied.weight = self.embedding.weight


def test_weights_of_all_kinds_are_prunable_but_kept_tied_and_embeddings() -> None:
    names = set(prunable(Mixed(), kept=("first",)))
    assert names == {
        "linear.weight", "conv.weight", "turned.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0",
    }  # fmt: skip


def test_pruning_refuses_names_that_are_not_there_and_models_without_weights() -> None:
    with pytest.raises(ValueError, match="got 'nowhere'"):
        prunable(Mixed(), kept=("nowhere",))
    with pytest.raises(ValueError, match="got none"):
        prunable(nn.Sequential(nn.Linear(2, 2)), kept=("0",))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_pruning_reaches_the_sparsity_and_leaves_kept_layers(sparsity: float) -> None:
    workload = mlp_workload()
    before = copy.deepcopy(workload.model)
    sparse, zeros = pruned(workload, sparsity)
    assert zeros == round(sparsity * 64 * 128) / (64 * 128)
    assert int((sparse.model[0].weight == 0).sum()) == round(sparsity * 64 * 128)
    assert not torch.signbit(sparse.model[0].weight[sparse.model[0].weight == 0]).any()
    assert torch.equal(sparse.model[2].weight, before[2].weight)
    # The workload's own model serves the next sparsity.
    assert torch.equal(workload.model[0].weight, before[0].weight)


def test_no_layer_is_emptied_for_its_scale() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight.data *= 1e-3
    prune(model, 0.8)
    for layer in model:
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.8, abs=0.03)


def test_settled_batch_norms_pass_their_signal_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[0].weight.data *= 1e-6
    images = torch.randn(4, 3, 10, 10)
    settle_batch_norms(model, images)
    assert not any(module.training for module in model.modules())
    assert torch.allclose(model[1].running_mean, model[0](images).mean((0, 2, 3)))
    assert model[1].running_var.max() < 1e-3


# ---- comparison


def test_a_converted_model_compares_well() -> None:
    workload, _ = pruned(mlp_workload(), 0.8)
    found = compare(workload, convert_to_sparse(workload.model, min_speedup=0))
    assert found.between <= found.error + found.dense_error
    assert found.error <= bound(found.dense_error, found.largest)
    assert found.cosine == pytest.approx(1.0)
    assert found.largest == pytest.approx(
        float(run(workload.model, workload.inputs).detach().abs().max())
    )
    assert found.tokens is None


def changed(workload: Workload, weight: float) -> nn.Module:
    model = copy.deepcopy(workload.model)
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 2).view(-1)[0] = weight
    return model


@pytest.mark.parametrize("weight", [1.0, float("nan"), float("inf")])
def test_a_wrong_weight_is_found(weight: float) -> None:
    workload = mlp_workload()
    with pytest.raises(WrongResultError, match="expected outputs within"):
        compare(workload, changed(workload, weight))


def test_outputs_of_another_shape_are_wrong() -> None:
    workload = mlp_workload()
    with pytest.raises(WrongResultError, match=r"expected outputs of shape \(16, 10\)"):
        compare(workload, workload.model[:2])


def test_a_dense_model_that_gives_nan_proves_nothing() -> None:
    workload = mlp_workload()
    broken = dataclasses.replace(workload, model=changed(workload, float("inf")))
    with pytest.raises(WrongResultError):
        compare(broken, broken.model)


def test_tokens_are_compared_one_by_one() -> None:
    workload = babbler_workload()
    assert compare(workload, convert_to_sparse(workload.model, min_speedup=0)).tokens == 5
    other = copy.deepcopy(workload.model)
    with torch.no_grad():
        other.layer.weight.neg_()
        other.layer.bias.neg_()
    with pytest.raises(
        WrongResultError, match=r"token \d at \d, got \d; the dense model preferred"
    ):
        compare(workload, other)


def test_the_bound_grows_with_the_dense_error_and_never_vanishes() -> None:
    assert bound(1e-6, 1.0) == 8e-6 + 64 * EPS
    assert bound(0.0, 2.0) == 128 * EPS


# ---- measurement


def test_a_row_says_what_was_done() -> None:
    workload, zeros = pruned(mlp_workload(), 0.8)
    row = measure("mlp", workload, 0.8, zeros, 1, ONE_ROUND)
    assert (row.model, row.does, row.trained) == ("mlp", "16 rows", True)
    assert (row.sparsity, row.zeros, row.threads, row.rounds) == (0.8, zeros, 1, 1)
    assert row.converted_layers + len(row.left_layers) == 2
    assert row.left_layers["2"] == "it has no zeros"
    assert row.dense_bytes == 4 * (64 * 128 + 128 + 128 * 10 + 10)
    assert row.conversion_seconds > 0
    assert row.speedup.median == pytest.approx(row.dense.minimum / row.converted.minimum)
    assert row.channels_last is None and row.speedup_over_channels_last is None


def test_networks_for_images_meet_channels_last_too() -> None:
    workload, zeros = pruned(conv_workload(), 0.8)
    row = measure("conv", workload, 0.8, zeros, 1, ONE_ROUND)
    assert row.channels_last is not None and row.speedup_over_channels_last is not None
    model, inputs = channels_last(workload)
    assert inputs["input"].is_contiguous(memory_format=torch.channels_last)
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert not workload.model[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_wrong_conversion_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = mlp_workload()

    def convert(model: nn.Module, **_: object) -> nn.Module:
        wrong = convert_to_sparse(model, min_speedup=0)
        wrong[0].bias.data += 1
        return wrong

    monkeypatch.setattr("benchmarks.models.measure.convert_to_sparse", convert)
    monkeypatch.setattr("benchmarks.models.measure.interleave", pytest.fail)
    with pytest.raises(WrongResultError):
        measure("mlp", workload, 0.0, 0.0, 1, ONE_ROUND)


def test_pruned_layers_that_the_report_does_not_know_count_as_left() -> None:
    model = Mixed()
    workload = Workload(model, {}, "", True, kept=("first",))
    layers = report(model).layers
    known = [layer for layer in layers if layer.name not in ("linear", "turned")]
    left = left_dense(workload, known)
    assert left["linear"] == "the report does not know it: Linear"
    assert left["turned"].endswith("Conv1D")


def test_shared_weights_are_counted_once() -> None:
    model = Babbler()
    assert bytes_in_memory(model) == 4 * (7 * 16 + 16 * 16 + 16)


# ---- command


def missing() -> Workload:
    raise MissingPackageError("expected a package, got none, try: pip install it")


def broken() -> Workload:
    workload = mlp_workload()
    return dataclasses.replace(workload, inputs={"input": torch.randn(16, 63)})


def interrupted() -> Workload:
    raise KeyboardInterrupt


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    stand_ins = {
        "mlp": mlp_workload,
        "missing": missing,
        "broken": broken,
        "interrupted": interrupted,
        "talk": babbler_workload,
    }
    monkeypatch.setattr(command, "MODELS", stand_ins)
    monkeypatch.setattr(command, "QUICK_PLAN", ONE_ROUND)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    made = typer.Typer()
    made.command()(command.main)
    return made


def test_one_command_measures_and_writes(app: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "new" / "r.json"
    words = ["--models", "mlp,talk", "--sparsity", "0.5,0.8", "--threads", "1,2", "--quick"]
    threads = torch.get_num_threads()
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    results = ModelResults.read(out)
    found = [(row.model, row.sparsity, row.threads) for row in results.rows]
    assert found == [(m, s, t) for m in ("mlp", "talk") for s in (0.5, 0.8) for t in (1, 2)]
    assert results.complete and not results.skipped and not results.failures
    assert results.command == (
        "python -m benchmarks.models --models mlp,talk --sparsity 0.5,0.8 --threads 1,2 "
        "--out r.json --quick"
    )
    assert {"cpu", "cores"} <= results.machine.keys() and results.versions["torch"]
    assert torch.get_num_threads() == threads
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "8 rows written" in done.output


def test_a_missing_package_is_a_row_and_not_a_failure(app: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    words = ["--models", "missing,mlp", "--sparsity", "0.8", "--threads", "1", "--quick"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    results = ModelResults.read(out)
    assert [row.model for row in results.rows] == ["mlp"]
    assert results.skipped == [
        Skipped("missing", "expected a package, got none, try: pip install it")
    ]
    assert not results.complete
    assert "pip install it" in done.output


def test_a_model_that_fails_ends_with_status_1_and_the_others_go_on(
    app: typer.Typer, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    words = ["--models", "broken,mlp", "--sparsity", "0.8", "--threads", "1", "--quick"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 1
    results = ModelResults.read(out)
    assert [row.model for row in results.rows] == ["mlp"]
    assert [failure.model for failure in results.failures] == ["broken"]
    assert "RuntimeError" in results.failures[0].error
    assert json.loads(out.read_text())["complete"] is False


def test_an_interrupted_run_keeps_what_it_measured(app: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    words = ["--models", "mlp,interrupted,talk", "--sparsity", "0.8", "--threads", "1", "--quick"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 130
    results = ModelResults.read(out)
    assert [row.model for row in results.rows] == ["mlp"]
    assert not results.complete
