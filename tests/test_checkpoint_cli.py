"""`sparseinfer inspect`, `prune` and `sensitivity`: what they print, write and refuse."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparseinfer import cli, progress
from sparseinfer.checkpoints import Recipe, load_sparse, prune_state_dict, save_sparse
from sparseinfer.checkpoints.facts import inspect_checkpoint
from sparseinfer.checkpoints.sensitivity import magnitude_errors
from sparseinfer.commands.output import size_text
from sparseinfer.cost import worst_estimate


def run(capsys, *arguments):
    """Run the command in this process: exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(64, 64))


@pytest.fixture
def checkpoint(tmp_path, model):
    path = tmp_path / "model.pth"
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    return path


# --- inspect


def test_inspect_tells_of_every_tensor(capsys, tmp_path):
    state = {
        "fc.weight": torch.randn(256, 512),
        "half.weight": torch.randn(64, 64, dtype=torch.bfloat16),
        "conv.weight": torch.randn(16, 16, 3, 3),
        "fc.bias": torch.randn(256),
    }
    prune_state_dict(state, Recipe(structure="2:4", include=["half"]))
    prune_state_dict(state, Recipe(amount=0.9, include=["fc"]))
    save_file(state, tmp_path / "model.safetensors")
    code, out, err = run(capsys, "inspect", tmp_path / "model.safetensors", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows.keys() == state.keys()
    assert rows["fc.weight"]["shape"] == [256, 512] and rows["fc.weight"]["dtype"] == "float32"
    assert rows["fc.weight"]["sparsity"] == pytest.approx(0.9, abs=1e-5)
    assert rows["fc.weight"]["pattern"] == "unstructured"
    assert rows["half.weight"]["pattern"] == "2:4" and rows["half.weight"]["dtype"] == "bfloat16"
    assert rows["conv.weight"]["pattern"] == "dense"
    assert not rows["fc.bias"]["prunable"] and "one dimension" in rows["fc.bias"]["reason"]
    threads = torch.get_num_threads()
    density = 1 - rows["fc.weight"]["sparsity"]
    gain = worst_estimate("linear", 256, 512, density, threads).speedup
    assert rows["fc.weight"]["gain"] == pytest.approx(gain)
    elements = sum(tensor.numel() for tensor in state.values())
    assert found["totals"]["elements"] == elements
    assert found["totals"]["bytes"] == 4 * elements - 2 * 64 * 64
    assert found["totals"]["prunable_tensors"] == 3


def test_inspect_prints_a_table_and_totals(capsys, checkpoint):
    code, out, err = run(capsys, "inspect", checkpoint)
    assert (code, err) == (0, "")
    for text in ("0.weight", "8x3x3x3", "1.running_mean", "(norm with statistics)", "dense"):
        assert text in out
    assert "2 are weights of layers: 4,312 elements, 0.0% of them zero" in out
    assert "Beside the state_dict: epoch." in out


def test_inspect_reads_a_compressed_checkpoint(capsys, tmp_path):
    layer = nn.Linear(64, 64)
    prune_state_dict({"fc.weight": layer.weight}, Recipe(amount=0.9))
    saved = save_sparse(nn.Sequential(layer), tmp_path / "model")
    facts = inspect_checkpoint(tmp_path / "model")
    weight = next(tensor for tensor in facts.tensors if tensor.name == "0.weight")
    assert weight.stored == "sparse-bitmask" and weight.pattern == "unstructured"
    assert facts.totals["bytes"] == saved.stored_bytes
    code, out, _ = run(capsys, "inspect", tmp_path / "model")
    assert code == 0 and "unstructured, stored as sparse-bitmask" in out and "90.0%" in out


def test_inspect_shows_nan_and_checkpoints_without_weights(capsys, tmp_path):
    state = {"fc.weight": torch.full((4, 4), float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    torch.save({"bias": torch.ones(3)}, tmp_path / "bias.pth")
    code, out, _ = run(capsys, "inspect", tmp_path / "nan.pth")
    assert code == 0 and "16 NaN or Inf" in out
    code, out, _ = run(capsys, "inspect", tmp_path / "bias.pth")
    assert code == 0 and "0 are weights of layers" in out


# --- prune


def test_prune_writes_and_lists(capsys, tmp_path, checkpoint, model):
    out_file = tmp_path / "out" / "pruned.pth"
    code, out, err = run(capsys, "prune", checkpoint, "--amount", "0.5", "-o", out_file)
    assert (code, err) == (0, "")
    assert "2 of 9 tensors pruned: 50.0% of their 4,312 weights are zero" in out
    assert "pruned: a layer's weight" in out and "left: norm with statistics" in out
    assert "Written: " in out
    pruned = torch.load(out_file, weights_only=True)
    assert pruned["epoch"] == 3
    state = pruned["state_dict"]
    assert sum(int((state[f"{i}.weight"] == 0).sum()) for i in (0, 2)) == 2156
    kept = state["2.weight"] != 0
    assert torch.equal(state["2.weight"][kept], model[2].weight.detach()[kept])


@pytest.mark.parametrize(
    ("options", "zeros"),
    [
        (["--amount", "0.25", "--scope", "layer"], [54, 1024]),
        (["--amount", "100", "--include", "2"], [0, 100]),
        (["--amount", "0.5", "--exclude", "0.weight"], [0, 2048]),
        (["--structure", "2:4", "--exclude", "0"], [0, 2048]),
        (["--amount", "0.5", "--structure", "4x1", "--include", "2.weight"], [0, 2048]),
        (["--method", "random", "--amount", "0.5", "--seed", "3", "--include", "2"], [0, 2048]),
        (["--method", "threshold", "--amount", "1000"], [216, 4096]),
    ],
)
def test_prune_options(capsys, tmp_path, checkpoint, options, zeros):
    out_file = tmp_path / "pruned.safetensors"
    code, out, _ = run(capsys, "prune", checkpoint, *options, "-o", out_file, "--json")
    assert code == 0
    state = load_sparse(out_file)
    assert [int((state[f"{i}.weight"] == 0).sum()) for i in (0, 2)] == zeros
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert [rows[f"{i}.weight"]["zeros"] for i in (0, 2)] == zeros
    emptied = [text for text in json.loads(out)["warnings"] if "emptied" in text]
    assert len(emptied) == (2 if zeros == [216, 4096] else 0)


def test_prune_to_the_sparse_format(capsys, tmp_path, checkpoint):
    out_file = tmp_path / "sparse.safetensors"
    code, out, _ = run(
        capsys, "prune", checkpoint, "--amount", "0.9", "-o", out_file, "--format", "sparse"
    )
    assert code == 0 and "left out: epoch" in out
    assert out_file.stat().st_size < checkpoint.stat().st_size / 2
    assert int((load_sparse(out_file)["2.weight"] == 0).sum()) > 3000


def test_dry_run_writes_nothing(capsys, tmp_path, checkpoint):
    before = checkpoint.read_bytes()
    arguments = ("prune", checkpoint, "--amount", "0.5", "--in-place", "--dry-run")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "Nothing was written." in out
    assert checkpoint.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_prune_in_place(capsys, checkpoint):
    torch.save({"weight_orig": torch.ones(99, 99), "weight_mask": torch.eye(99)}, checkpoint)
    before = checkpoint.stat().st_size
    code, out, _ = run(capsys, "prune", checkpoint, "--amount", "0.99", "--in-place")
    after = checkpoint.stat().st_size
    assert code == 0 and after < 0.6 * before
    assert f"Written: {checkpoint} ({size_text(before)} -> {size_text(after)})." in out
    assert load_sparse(checkpoint).keys() == {"weight"}
    assert int((load_sparse(checkpoint)["weight"] == 0).sum()) == round(0.99 * 99 * 99)


# --- sensitivity


def test_magnitude_errors_are_those_of_pruning():
    weight = torch.randn(30, 40)
    for sparsity, error in zip(
        (0.0, 0.3, 0.9), magnitude_errors(weight, (0.0, 0.3, 0.9)), strict=True
    ):
        state = {"fc.weight": weight.clone()}
        prune_state_dict(state, Recipe(amount=sparsity))
        expected = (weight - state["fc.weight"]).norm() / weight.norm()
        assert error == pytest.approx(float(expected), rel=1e-5)
    assert magnitude_errors(torch.zeros(2, 2), [0.5]) == [0.0]


def test_sensitivity_prints_and_draws(capsys, tmp_path, checkpoint):
    picture = tmp_path / "sensitivity.png"
    code, out, _ = run(capsys, "sensitivity", checkpoint, "--sparsities", "0.5,0.9", "--json")
    found = json.loads(out)
    assert code == 0 and found["sparsities"] == [0.5, 0.9]
    assert found["errors"].keys() == {"0.weight", "2.weight"}
    assert all(0 < low < high < 1 for low, high in found["errors"].values())
    code, out, _ = run(capsys, "sensitivity", checkpoint, "--plot", picture, "--exclude", "0")
    assert code == 0 and "2.weight" in out and "0.weight" not in out and "95%" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- what they refuse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("inspect absent.pth", "absent.pth: expected a checkpoint, got none"),
        ("prune absent.pth --amount 0.5 --dry-run", "absent.pth: expected a checkpoint"),
        ("sensitivity absent.pth", "absent.pth: expected a checkpoint, got none"),
        ("prune CKPT --amount 0.5", "expected an output, got none; try -o OUT"),
        ("prune CKPT --dry-run", "expected an --amount, got none; try"),
        ("prune CKPT --amount 1.0 --dry-run", "expected an amount of 0 <= amount < 1"),
        ("prune CKPT --amount x% --dry-run", "expected a number as --amount"),
        ("prune CKPT --amount nan --dry-run", "expected an amount of 0 <= amount < 1"),
        ("prune CKPT --amount 0.5 -o CKPT", "other than the input, got the same"),
        ("prune CKPT --amount 0.5 -o x --in-place", "got both; try one of them"),
        ("prune CKPT --amount 0.5 --include x --dry-run", "got 'x'; try one of"),
        ("prune CKPT --amount 0.5 --key x --dry-run", "try one of epoch"),
        ("prune CKPT --amount 0.5 --format x -o x", "a format of dense, sparse"),
        ("prune CKPT --amount 0.5 -o x.pth --format sparse", "got .pth; try"),
        ("prune CKPT --amount 0.5 --in-place --format sparse", "try -o OUT"),
        ("prune CKPT --amount 0.5 -o CKPT/x.pth", "model.pth: "),
        ("sensitivity CKPT --sparsities 0.5,x", "expected numbers with commas between"),
        ("sensitivity CKPT --sparsities 1.5", "expected sparsities of 0 <= sparsity < 1"),
        ("sensitivity CKPT --plot x.docx", "expected a suffix of"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_code_2(capsys, monkeypatch, checkpoint, arguments, message):
    monkeypatch.chdir(checkpoint.parent)
    before = checkpoint.read_bytes()
    named = [part.replace("CKPT", str(checkpoint)) for part in arguments.split()]
    code, out, err = run(capsys, *named)
    assert code == 2 and out == ""
    assert err.startswith("sparseinfer: error: ") and err.count("\n") == 1
    assert message in err
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.pth"]


def test_nan_and_a_pickled_module_are_one_line(capsys, tmp_path, model):
    torch.save({"fc.weight": torch.full((2, 2), float("nan"))}, tmp_path / "nan.pth")
    torch.save(model, tmp_path / "module.pth")
    for name, message in (("nan.pth", "4 NaN or Inf"), ("module.pth", "runs code")):
        code, _, err = run(capsys, "prune", tmp_path / name, "--amount", "0.5", "--dry-run")
        assert code == 2 and message in err and err.count("\n") == 1
    code, _, err = run(capsys, "sensitivity", tmp_path / "nan.pth")
    assert code == 2 and "4 NaN or Inf" in err


@pytest.mark.parametrize("command", ["inspect", "prune", "sensitivity"])
def test_help_has_examples(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and "Examples:" in out and f"sparseinfer {command}" in out


def test_a_bar_shows_only_on_a_terminal_and_after_two_seconds(capsys, monkeypatch, checkpoint):
    arguments = ("prune", checkpoint, "--amount", "0.5", "--dry-run")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "pruning" not in run(capsys, *arguments)[2]
    monkeypatch.setattr(progress, "PATIENCE_S", -1.0)
    seen = []
    monkeypatch.setattr(
        progress.Progress, "start", lambda self: seen.append(self.tasks[0].description)
    )
    run(capsys, *arguments)
    assert "pruning" in seen
    seen.clear()
    run(capsys, *arguments, "--json")
    assert seen == []
