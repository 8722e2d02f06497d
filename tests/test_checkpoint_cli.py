"""`sparseinfer inspect`, `prune` and `sensitivity`: what they print, write and refuse."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparseinfer import api, cli, progress
from sparseinfer.checkpoints import Recipe, load_sparse, prune_state_dict, save_sparse
from sparseinfer.checkpoints.facts import inspect_checkpoint
from sparseinfer.checkpoints.sensitivity import magnitude_errors
from sparseinfer.commands.output import size_text
from sparseinfer.layers.kinds import kind_named


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


@pytest.mark.parametrize("width", [60, 80])
def test_no_column_is_cut_where_the_terminal_is_narrow(capsys, monkeypatch, tmp_path, width):
    name = "model.decoder.layers.11.self_attn.q_proj.weight"
    state = {name: torch.zeros(1024, 1024, dtype=torch.bfloat16), "fc.weight": torch.eye(64)}
    state["mask"] = torch.zeros(12, 10240, 1, 1, 1).to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "model.pth")
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run(capsys, "inspect", tmp_path / "model.pth")
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= width
    assert any(line.endswith(" gain") for line in lines)
    assert sum(line.endswith("x") for line in lines) == 2
    assert "…" not in out


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
    gain = kind_named("linear").worst_estimate(256, 512, density, threads).speedup
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
        ("prune CKPT --amount 1.0 --dry-run", "expected an --amount between 0 and 1"),
        ("prune CKPT --amount=-5 --dry-run", "expected an --amount above 0, got -5; try"),
        ("prune CKPT --amount 120% --dry-run", "got 120%; try --amount 0.9, or --count"),
        ("prune CKPT --amount 99.9 --dry-run", "got 99.9; try --amount 0.999 or 99.9%"),
        ("prune CKPT --method threshold --amount 1% --dry-run", "got '1%'; try --amount 0.01"),
        ("prune CKPT --amount x% --dry-run", "expected a number as --amount"),
        ("prune CKPT --amount nan --dry-run", "expected an --amount between 0 and 1"),
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
        "rich.progress.Progress.start", lambda self: seen.append(self.tasks[0].description)
    )
    run(capsys, *arguments)
    assert "pruning" in seen
    seen.clear()
    run(capsys, *arguments, "--json")
    assert seen == []


# --- what it protects, and what the machine refuses


def one_line(err):
    return err.startswith("sparseinfer: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("amount", "hint"),
    [
        ("80", "try --amount 0.8 or 80%, or --count 80"),
        ("1", "try --amount 0.01 or 1%, or --count 1"),
        ("99", "try --amount 0.99 or 99%"),
        ("80.0", "try --amount 0.8 or 80%"),
        ("0", "that prunes something, got 0"),
        ("0.0", "that prunes something, got 0.0"),
        ("0%", "that prunes something, got 0%"),
        ("100%", "between 0 and 1, or 0% and 100%"),
        ("-5%", "between 0 and 1, or 0% and 100%"),
        ("0.00001", "which prunes none of the 4312 weights"),
        ("1e-9", "which prunes none of the 4312 weights"),
    ],
)
def test_amounts_that_are_not_meant_are_refused(capsys, tmp_path, checkpoint, amount, hint):
    arguments = ("prune", checkpoint, f"--amount={amount}", "-o", tmp_path / "out.pth")
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and one_line(err) and hint in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_another_name_of_the_input_is_not_taken_for_it(capsys, tmp_path, checkpoint):
    before, other = checkpoint.read_bytes(), tmp_path / "other.pth"
    other.hardlink_to(checkpoint)
    code, _, err = run(capsys, "prune", checkpoint, "--amount", 0.5, "-o", other, "--force")
    assert code == 2 and one_line(err) and "other than the input, got the same" in err
    assert checkpoint.read_bytes() == other.read_bytes() == before
    other.unlink()
    other.symlink_to(checkpoint)
    assert run(capsys, "prune", checkpoint, "--amount", 0.5, "-o", other, "--force")[0] == 0
    assert checkpoint.read_bytes() != before and other.is_symlink()


@pytest.mark.parametrize(
    ("options", "share"), [(["--amount", "80%"], 0.8), (["--amount", "12.5%"], 0.125)]
)
def test_percentages_and_counts(capsys, checkpoint, options, share):
    code, out, _ = run(capsys, "prune", checkpoint, *options, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["sparsity"] == pytest.approx(share, abs=1e-3)


def test_a_count_is_spelled_out_and_few_zeros_are_not_written_as_none(capsys, tmp_path):
    torch.save({"fc.weight": torch.ones(200, 200)}, tmp_path / "model.pth")
    code, out, _ = run(capsys, "prune", tmp_path / "model.pth", "--count", "7", "--dry-run")
    assert code == 0 and "0.0% -> <0.1%" in out and "pruned: <0.1% of their 40,000" in out
    code, _, err = run(capsys, "prune", tmp_path / "model.pth", "--count", "7", "--amount", "0.5")
    assert code == 2 and one_line(err)


def test_what_was_pruned_before_is_said_to_be(capsys, tmp_path):
    torch.save({"fc.weight": torch.eye(20)}, tmp_path / "model.pth")
    arguments = ("prune", tmp_path / "model.pth", "--amount", "0.5", "-o", tmp_path / "out.pth")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "Nothing was pruned: as many weights were zero before." in out


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors", "link.pth"])
def test_files_that_are_there_need_force(capsys, tmp_path, checkpoint, name):
    (tmp_path / "out.pth").write_text("mine")
    (tmp_path / "out.safetensors").write_text("mine")
    (tmp_path / "link.pth").symlink_to("out.pth")
    arguments = ("prune", checkpoint, "--amount", "0.5", "-o", tmp_path / name)
    code, _, err = run(capsys, *arguments)
    assert code == 2 and one_line(err) and "try another, or --force" in err
    assert (tmp_path / name).read_text() == "mine"
    assert run(capsys, *arguments, "--force")[0] == 0
    assert int((load_sparse(tmp_path / name)["2.weight"] == 0).sum()) > 1000


def test_the_input_needs_force_too(capsys, checkpoint):
    arguments = ("prune", checkpoint, "--amount", "0.5", "-o", checkpoint)
    assert run(capsys, *arguments)[0] == 2
    assert run(capsys, *arguments, "--force")[0] == 0
    assert int((load_sparse(checkpoint)["2.weight"] == 0).sum()) > 1000


def test_a_plot_and_a_demo_do_not_replace_files(capsys, tmp_path, checkpoint):
    (tmp_path / "plot.png").write_text("mine")
    (tmp_path / "pruned.pt").write_text("mine")
    plot = ("sensitivity", checkpoint, "--plot", tmp_path / "plot.png")
    for arguments in (plot, ("demo", "--out", tmp_path)):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and one_line(err) and "--force" in err
    assert run(capsys, *plot, "--force")[0] == 0
    assert (tmp_path / "pruned.pt").read_text() == "mine"


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("kind", ["/dev/null", "/dev/full", "pipe", "folder"])
def test_what_is_no_file_is_never_replaced(capsys, tmp_path, checkpoint, kind, force):
    target = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(target)
    if kind == "folder":
        target.mkdir()
    before = target.stat().st_mode
    for arguments in (
        ("prune", checkpoint, "--amount", "0.5", "-o", target, *force),
        ("sensitivity", checkpoint, "--plot", target, *force),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and one_line(err) and "try" in err
    assert target.stat().st_mode == before


def test_names_are_printed_without_control_characters(capsys, tmp_path):
    name = "fc\x1b[2J\r\n\x9b\u202e.weight"
    torch.save({name: torch.eye(9), "x": {"\x1b[31m": 1}}, tmp_path / "a\x1b[2Jb.pth")
    source = tmp_path / "a\x1b[2Jb.pth"
    for arguments in (
        ("inspect", source),
        ("prune", source, "--amount", "0.9", "-o", tmp_path / "o\x1b[2J.pth"),
        ("sensitivity", source),
        ("prune", source, "--amount", "0.5", "--include", "\x1b[2J", "--dry-run"),
        ("inspect", tmp_path / "\x1b[2J\n.pth"),
        ("inspect", source, "--key", "\x1b[2J"),
    ):
        _, out, err = run(capsys, *arguments)
        assert not set(out + err) & set("\x1b\r\x9b\u202e")
        assert "\\x1b[2J" in out + err


class Interrupted:
    """Raises in the place of a command's work."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "x.pth"), 1, "x.pth: No space left on device"),
        (PermissionError(13, "Permission denied", "x.pth"), 1, "x.pth: Permission denied"),
        (OSError(36, "File name too long", "x.pth"), 2, "x.pth: File name too long"),
        (MemoryError(), 1, "out of memory"),
        (RecursionError("maximum recursion depth"), 2, "nested too deeply"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("a word\nand another"), 1, "RuntimeError: a word; try"),
        (ValueError(), 1, "ValueError"),
    ],
)
def test_every_error_is_one_line(capsys, monkeypatch, checkpoint, error, code, message):
    from sparseinfer.checkpoints import facts

    monkeypatch.setattr(facts, "open_checkpoint", Interrupted(error))
    found, out, err = run(capsys, "inspect", checkpoint)
    assert (found, out) == (code, "") and one_line(err) and message in err


def in_a_process(arguments, **options):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "sparseinfer", *map(str, arguments)]
    return subprocess.run(command, text=True, check=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("out", ["out.pth", "out.safetensors", "out"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, out):
    torch.save({"fc.weight": torch.randn(600, 600)}, tmp_path / "model.pth")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))  # noqa: E731
    format = "dense" if "." in out else "sparse"
    arguments = ("prune", tmp_path / "model.pth", "--amount", "0.1", "-o", tmp_path / out)
    done = in_a_process(
        (*arguments, "--format", format), capture_output=True, preexec_fn=limit, cwd=tmp_path
    )
    assert done.returncode == 1 and done.stdout == "" and one_line(done.stderr)
    assert f"error: {tmp_path / out}" in done.stderr and "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.slow
def test_a_reader_that_has_gone_is_one_line(tmp_path):
    torch.save({f"fc{i}.weight": torch.eye(9) for i in range(2000)}, tmp_path / "model.pth")
    read, write = os.pipe()
    os.close(read)
    done = in_a_process(("inspect", tmp_path / "model.pth"), stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1 and one_line(done.stderr) and "standard output" in done.stderr


def test_names_that_the_terminal_cannot_show_are_spelled_out(tmp_path):
    torch.save({"größe.weight": torch.eye(9)}, tmp_path / "model.pth")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    arguments = ("inspect", tmp_path / "model.pth")
    done = in_a_process(arguments, capture_output=True, env=environment)
    assert done.returncode == 0 and "gr\\xf6\\xdfe.weight" in done.stdout


def test_tensors_that_are_not_dense_are_listed_and_refused_where_they_cannot_be_written(
    capsys, tmp_path
):
    path = tmp_path / "model.pth"
    state = {
        "fc.weight": torch.randn(8, 8),
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8),
    }
    torch.save(state, path)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0 and out.count("(not a plain dense tensor)") == 2
    arguments = ("prune", path, "--amount", "0.5", "-o")
    assert run(capsys, *arguments, tmp_path / "out.pth")[0] == 0
    assert torch.load(tmp_path / "out.pth", weights_only=True).keys() == state.keys()
    code, _, err = run(capsys, *arguments, tmp_path / "out.safetensors")
    assert code == 2 and one_line(err) and "sparse: expected a dense tensor" in err
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"fc.weight": nested}, path)
    code, _, err = run(capsys, "inspect", path)
    assert code == 2 and one_line(err) and "got a nested one" in err


def test_version_and_help_do_not_import_torch():
    script = (
        "import sys; sys.argv = ['sparseinfer', sys.argv[1]]\n"
        "from sparseinfer.cli import main\n"
        "try: main()\nfinally: assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    for option in ("--version", "--help"):
        done = subprocess.run([sys.executable, "-c", script, option], capture_output=True)
        assert done.returncode == 0, done.stderr


def test_the_package_is_complete_in_the_command_too():
    script = "import sys; sys.argv = ['sparseinfer']\nimport sparseinfer\n"
    for name in api.__all__:
        script += f"assert sparseinfer.{name} is not None\n"
    script += "try: sparseinfer.nothing\nexcept AttributeError: print('right')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr
