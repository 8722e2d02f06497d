"""Compiled networks on the command line: export, inspect, run and bench, and what they refuse."""

from __future__ import annotations

import importlib
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import prune, simple_cnn
from safetensors.torch import save_file
from torch import Tensor, nn

from sparseinfer import cli
from sparseinfer.commands.run import named_outputs
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import load_engine

FACTORIES = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].weight.data[:, 2:] = 0
    return model


def with_example():
    return small(), torch.ones(2, 6)


class Models:
    small = staticmethod(small)


class Sorts(nn.Module):
    def forward(self, x):
        return nn.functional.softplus(x).sort(-1).values


def sorts():
    return Sorts()


def fails():
    raise KeyError("no such thing\\nmore")


def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a module of factories that no other test has imported."""
    (tmp_path / f"factories_{tmp_path.name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def module(folder: Path) -> str:
    return f"factories_{folder.name}"


@pytest.fixture
def saved(folder: Path) -> Path:
    torch.manual_seed(0)
    model = simple_cnn()
    prune(model, 0.8)
    x = torch.randn(2, 3, 32, 32)
    compile(model, x, baselines=(), golden=True).save("model.sinf")
    np.save("x.npy", x.numpy())
    with torch.no_grad():
        np.save("expected.npy", model(x).numpy())
    return folder / "model.sinf"


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


def refused(capsys: Any, *arguments: str) -> str:
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    assert err.startswith("sparseinfer: error: ") and err.count("\n") == 1
    return err


def test_a_factory_becomes_a_file(capsys: Any, folder: Path, module: str) -> None:
    code, out, err = run(
        capsys, "export", f"{module}:with_example", "-o", "m.sinf", "--baselines", "none",
        "--golden",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "Outputs within" in out and "Written: m.sinf" in out
    engine = load_engine("m.sinf")
    assert engine.selftest() < 1
    assert engine(torch.ones(2, 6)).shape == (2, 4)
    for source, example in ((f"{module}:small", "2x6"), (f"{module}:Models.small", "x.npy")):
        np.save("x.npy", np.ones((2, 6), np.float32))
        code, _, err = run(
            capsys, "export", source, "--example", example, "-o", "n.sinf", "--force",
            "--baselines", "none",
        )  # fmt: skip
        assert (code, err) == (0, "")
        assert torch.equal(load_engine("n.sinf")(torch.ones(2, 6)), engine(torch.ones(2, 6)))


def test_a_file_of_bfloat16(capsys: Any, folder: Path, module: str) -> None:
    for activations in ("float32", "bfloat16"):
        code, out, err = run(
            capsys, "export", f"{module}:with_example", "-o", "m.sinf", "--baselines", "none",
            "--weights", "bfloat16", "--activations", activations, "--force",
        )  # fmt: skip
        assert (code, err) == (0, "")
        assert "Outputs of bfloat16 within" in out
        assert "bfloat16" in run(capsys, "inspect", "m.sinf")[1]


def test_a_file_of_any_batch(capsys: Any, folder: Path, module: str) -> None:
    code, _, err = run(
        capsys, "export", f"{module}:with_example", "-o", "m.sinf", "--baselines", "none",
        "--dynamic-batch",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "Any batch up to 2,147,483,647." in run(capsys, "inspect", "m.sinf")[1]
    np.save("x.npy", np.ones((5, 6), np.float32))
    assert "output: 5x4" in run(capsys, "run", "m.sinf", "--input", "x.npy")[1]
    np.save("x.npy", np.ones((5, 7), np.float32))
    assert "expected 2x6" in refused(capsys, "run", "m.sinf", "--input", "x.npy")


@pytest.mark.parametrize("factory", ["with_example", "sorts", "fails"])
def test_an_export_leaves_the_log_as_it_was(
    capsys: Any, folder: Path, module: str, factory: str
) -> None:
    own = logging.getLogger("sparseinfer")
    before = own.level
    run(capsys, "export", f"{module}:{factory}", "--example", "2x6", "-o", "x.sinf")
    assert own.level == before != logging.ERROR


def test_a_program_becomes_a_file(capsys: Any, folder: Path) -> None:
    model, x = simple_cnn(), torch.randn(1, 3, 32, 32)
    torch.export.save(torch.export.export(model, (x,)), "m.pt2")
    code, out, err = run(capsys, "export", "m.pt2", "-o", "m.sinf", "--json", "--threads", "1")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["output"] == "m.sinf" and data["threads"] == 1 and data["totals"]["nodes"] == 6
    assert data["bytes"] == (folder / "m.sinf").stat().st_size
    assert data["races"][0]["speedup"] > 0
    assert torch.allclose(load_engine("m.sinf")(x), model(x), atol=1e-5)


INT8 = ("{module}:with_example", "--weights", "int8", "--calibration")


def test_an_export_in_bytes(capsys: Any, folder: Path, module: str) -> None:
    samples = torch.randn(20, 6)
    np.save("samples.npy", samples.numpy())
    (folder / "batches").mkdir()
    (folder / "archives").mkdir()
    for place, part in enumerate(samples.split(8)):
        np.save(f"batches/{place}.npy", part.numpy())
        np.savez_compressed(f"archives/{place}.npz", input=part.numpy())
    save_file({"input": samples}, "samples.safetensors")
    np.savez("named.npz", input=samples.numpy())
    np.savez("ordered.npz", samples.numpy())
    given = [word.format(module=module) for word in INT8]
    files = {}
    for data in (
        "samples.npy",
        "samples.safetensors",
        "named.npz",
        "ordered.npz",
        "batches",
        "archives",
    ):
        code, out, err = run(capsys, "export", *given, data, "-o", "0.sinf", "--force")
        assert (code, err) == (0, "") and "dB" in out
        files[data] = (folder / "0.sinf").read_bytes()
    whole = [files.pop(data) for data in ("batches", "archives")]
    assert len({*files.values()}) == 1 and whole[0] == whole[1]
    assert len(whole[0]) == len(files["samples.npy"])
    model = importlib.import_module(module).small()
    y = load_engine("0.sinf")(samples[:2])
    assert torch.allclose(y, model(samples[:2]), atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.onnx"], "none.onnx: No such file"),
        (["broken.onnx"], "broken.onnx: expected an ONNX model"),
        (["model"], "expected a .pt2 or .onnx file, or package.module:factory, got 'model'"),
        (["a b:c"], "expected a .pt2 or .onnx file, or package.module:factory"),
        (["none.pt2"], "none.pt2: No such file"),
        (["broken.pt2"], "broken.pt2: expected a file that torch.export.save wrote"),
        (["nowhere_at_all:make"], "got ModuleNotFoundError"),
        (["{module}:absent"], "got AttributeError"),
        (["{module}:fails"], "got KeyError: 'no such thing"),
        (["{module}:number"], "expected a function that gives an nn.Module"),
        (["{module}:small"], "expected example inputs, got none; try --example"),
        (["{module}:small", "--example", "0x6"], "expected a shape or a .npy file as --example"),
        (["{module}:small", "--example", "2,6"], "expected a shape or a .npy file as --example"),
        (["{module}:small", "--example", "9999999999x9999999999"], "try less"),
        (["{module}:small", "--example", "2x7"], "{module}:small: "),
        (["{module}:small", "--example", "2x6", "--example", "2x6"], "{module}:small: "),
        (["{module}:small", "--weights", "int8"], "expected --calibration with int8, got none"),
        (["{module}:with_example", "--calibration", "x.npy"], "expected no calibration data for"),
        (["{module}:with_example", "--activations", "int8", "--calibration", "x.npy"], "int8"),
        ([*INT8, "none.npy"], "none.npy: No such file"),
        ([*INT8, "broken.pt2"], "as --calibration, got 'broken.pt2'"),
        ([*INT8, "nowhere"], "nowhere: No such file or folder"),
        ([*INT8, "empty"], "expected .npy or .npz files, got none"),
        ([*INT8, "wide.npy"], "expected [2, 6] for input, of any batch, got [4, 7]"),
        ([*INT8, "nan.npy"], "NaN or Inf"),
        ([*INT8, "broken.npy"], "expected an array of numpy.save"),
        ([*INT8, "none.npy.npz"], "none.npy.npz: No such file"),
        ([*INT8, "broken.npz"], "broken.npz: expected an archive of numpy.savez, got a file"),
        ([*INT8, "one.npz"], "one.npz: expected an archive of numpy.savez, got one array"),
        ([*INT8, "none.npz"], "none.npz: expected an array for each input, got none"),
        ([*INT8, "others.npz"], "expected input, got y which the model does not take"),
        ([*INT8, "two.npz"], "expected at most 1 positional arguments, got 2"),
        ([*INT8, "gap.npz"], "expected arr_0 to arr_1, an array for each input, got arr_0, arr_2"),
        ([*INT8, "doubles.npz"], "doubles.npz: input: expected an array of float32"),
        ([*INT8, "objects.npz"], "objects.npz: expected an archive of numpy.savez, got a file"),
        ([*INT8, "bytes.npz"], "bytes.npz: input: expected an array of float32"),
        ([*INT8, "nan.npz"], "nan.npz: input: expected finite samples, got 24 NaN or Inf among 24"),
        ([*INT8, "no.npz"], "no.npz: input: expected samples, got an array of shape [0, 6]"),
        ([*INT8, "no.npy"], "no.npy: expected samples, got an array of shape [0, 6]"),
        ([*INT8, "wide.npz"], "expected [2, 6] for input, of any batch, got [4, 7]"),
        ([*INT8, "broken.safetensors"], "broken.safetensors: "),
        (["{module}:with_example", "--activations", "bfloat16"], "got float32 and bfloat16"),
        (["{module}:small", "--weights", "int3"], "expected --weights of float32"),
        (["{module}:with_example", "--target", "z80"], "expected a target of host"),
        (["{module}:with_example", "--baselines", "tensorrt"], "expected baselines of eager"),
        (["{module}:with_example", "--threads", "0"], "'--threads'"),
        (["{module}:with_example", "--golden", "--no-check"], "expected check=True"),
    ],
)
def test_exports_that_are_refused(
    capsys: Any, folder: Path, module: str, arguments: list[str], text: str
) -> None:
    for name in ("broken.pt2", "broken.npy", "broken.npz", "broken.onnx", "broken.safetensors"):
        (folder / name).write_bytes(b"PK hello")
    (folder / "empty").mkdir()
    np.save("x.npy", np.zeros((4, 6), np.float32))
    np.save("wide.npy", np.zeros((4, 7), np.float32))
    np.save("nan.npy", np.full((4, 6), np.nan, np.float32))
    np.save("no.npy", np.zeros((0, 6), np.float32))
    archives: dict[str, dict[str, Any]] = {
        "none": {}, "others": {"y": np.zeros((4, 6), np.float32)},
        "two": {f"arr_{n}": np.zeros((4, 6), np.float32) for n in (0, 1)},
        "gap": {f"arr_{n}": np.zeros((4, 6), np.float32) for n in (0, 2)},
        "doubles": {"input": np.zeros((4, 6))}, "objects": {"input": np.array([None])},
        "nan": {"input": np.full((4, 6), np.nan, np.float32)},
        "no": {"input": np.zeros((0, 6), np.float32)},
        "wide": {"input": np.zeros((4, 7), np.float32)},
    }  # fmt: skip
    for name, arrays in archives.items():
        np.savez(f"{name}.npz", **arrays)
    with zipfile.ZipFile("bytes.npz", "w") as archive:
        archive.writestr("input", b"PK hello")
    (folder / "one.npz").write_bytes((folder / "x.npy").read_bytes())
    given = [argument.format(module=module) for argument in arguments]
    assert text.format(module=module) in refused(capsys, "export", *given, "-o", "m.sinf")
    assert not (folder / "m.sinf").exists()


def test_missing_operators_are_listed(capsys: Any, folder: Path, module: str) -> None:
    code, out, err = run(capsys, "export", f"{module}:sorts", "--example", "1x4", "-o", "m.sinf")
    assert code == 2 and "that it has not; try sparseinfer.convert_to_sparse" in err
    assert "missing: aten.sort.default in ''" in out
    assert not (folder / "m.sinf").exists()


def test_a_file_that_is_there_is_kept(capsys: Any, saved: Path, module: str) -> None:
    before = saved.read_bytes()
    assert "--force" in refused(capsys, "export", f"{module}:with_example", "-o", str(saved))
    (saved.parent / "y.npy").write_text("mine")
    assert "--force" in refused(capsys, "run", str(saved), "--input", "x.npy", "-o", "y.npy")
    assert saved.read_bytes() == before and (saved.parent / "y.npy").read_text() == "mine"


def test_inspect(capsys: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "inspect", str(saved))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    whole = " ".join(out.split())
    assert "conv + relu" in out and "panel 64x2048 float32" in out
    assert "Model file of version 1: inputs input 2x3x32x32 float32" in whole
    code, out, err = run(capsys, "inspect", str(saved), "--json")
    data = json.loads(out)
    engine = load_engine(saved)
    assert data["file_bytes"] == saved.stat().st_size == sum(data["bytes"].values())
    assert data["arena_bytes"] == engine.report().arena_bytes < data["context_bytes"]
    assert [node["op"] for node in data["nodes"]] == [n["op"] for n in engine.report().nodes]
    assert data["totals"]["nonzeros"] < 0.3 * data["totals"]["weights"]
    kinds = {tensor["kind"] for tensor in data["tensors"]}
    assert kinds == {"input", "constant", "computed"}
    code, out, err = run(capsys, "inspect", str(saved), "--operators")
    assert (code, err) == (0, "")
    assert tuple(out.strip().split(";")) == engine.operators
    assert engine.operators == tuple(sorted({node["op"] for node in data["nodes"]}))
    assert "expected --operators or --json" in refused(
        capsys, "inspect", str(saved), "--operators", "--json"
    )
    # Known by its first bytes as well.
    saved.rename("other.bin")
    assert json.loads(run(capsys, "inspect", "other.bin", "--json")[1])["version"] == 1
    assert "expected no --key" in refused(capsys, "inspect", "other.bin", "--key", "a")


def test_run(capsys: Any, saved: Path) -> None:
    code, out, err = run(
        capsys, "run", "model.sinf", "--input", "x.npy", "-o", "y.npy", "--top-k", "3"
    )
    assert (code, err) == (0, "")
    expected = np.load("expected.npy")
    assert np.allclose(np.load("y.npy"), expected, atol=1e-5)
    assert "output: 2x10" in out and f"row 1: {expected[1].argmax()}: " in out
    code, out, _ = run(capsys, "run", "model.sinf", "--input", "input=x.npy", "--top-k", "99",
                       "--json", "--threads", "1")  # fmt: skip
    data = json.loads(out)["outputs"]["output"]
    assert data["shape"] == [2, 10] and data["top"][0] == list(np.argsort(-expected[0]))
    code, out, _ = run(capsys, "run", "model.sinf", "--selftest")
    assert code == 0 and out.startswith("Passed: ")
    assert json.loads(run(capsys, "run", "model.sinf", "--selftest", "--json")[1])["passed"]


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor, twice: bool = False) -> dict[str, Tensor]:
        return {"file": x + y, "x": torch.relu(x)}


def test_run_with_several_inputs_and_outputs(capsys: Any, folder: Path) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    compile(Two().eval(), (x, y, False), baselines=()).save("two.sinf")
    np.save("x.npy", x.numpy())
    np.save("y.npy", y.numpy())
    code, _, err = run(
        capsys, "run", "two.sinf", "--input", "y=y.npy", "--input", "x.npy", "-o", "z.npz"
    )
    assert (code, err) == (0, "")
    with np.load("z.npz") as found:
        assert np.array_equal(found["file"], (x + y).numpy())
        assert np.array_equal(found["x"], x.relu().numpy())
    inputs = ("--input", "x.npy", "--input", "y.npy")
    assert "expected the name of a .npz file" in refused(
        capsys, "run", "two.sinf", *inputs, "-o", "z.npy"
    )
    assert "got none for y" in refused(capsys, "run", "two.sinf", "--input", "x.npy")
    assert "got --input x.npy" in refused(capsys, "run", "two.sinf", *inputs, "--input", "x.npy")
    assert "2 inputs, x (2x3), y (2x3)" in refused(capsys, "run", "two.sinf")
    assert "got --input x=x.npy" in refused(
        capsys, "run", "two.sinf", "--input", "x=x.npy", "--input", "x=x.npy"
    )
    assert "without" in refused(capsys, "run", "two.sinf", "--selftest")


def test_ids_and_masks(capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokens.py").write_text(
        "import torch\n"
        "class Words(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(9, 4)\n"
        "    def forward(self, ids, mask):\n"
        "        x = self.table(ids)[:, None]\n"
        "        keys = mask[:, None, None]\n"
        "        return torch.nn.functional.scaled_dot_product_attention(x, x, x, keys)[:, 0]\n"
    )
    monkeypatch.syspath_prepend(folder)
    examples = ("--example", "2x3:int64", "--example", "2x3:bool")
    code, _, err = run(capsys, "export", "tokens:Words", *examples, "-o", "words.sinf")
    assert code == 0, err
    np.save("ids.npy", np.array([[1, 2, 8], [0, 3, 4]]))
    np.save("mask.npy", np.array([[True, True, False], [True, False, False]]))
    inputs = ("--input", "ids.npy", "--input", "mask=mask.npy")
    code, _, err = run(capsys, "run", "words.sinf", *inputs, "-o", "y.npy")
    assert code == 0 and np.load("y.npy").shape == (2, 3, 4), err
    assert run(capsys, "bench", "words.sinf", "--seconds", "0.05", *inputs)[0] == 0
    assert run(capsys, "bench", "words.sinf", "--seconds", "0.05")[0] == 0
    np.save("ids.npy", np.array([[1, 2, 9], [0, 3, 4]]))
    assert "from 0 to 8, got 9" in refused(capsys, "run", "words.sinf", *inputs)
    np.save("ids.npy", np.zeros((2, 3), np.int32))
    text = refused(capsys, "run", "words.sinf", *inputs)
    assert "expected an array of int64, got int32" in text and "astype(numpy.int64)" in text
    bad = ("export", "tokens:Words", "--example", "2x3:int7", "-o", "other.sinf")
    assert "or 1x128:int64" in refused(capsys, *bad)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "expected an array of numpy.save"),
        (b"hello", "expected an array of numpy.save"),
        (b"\x93NUMPY\x01\x00\x10\x00{}{}{}{}{}{}{}{}", "expected an array of numpy.save"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "expected an array of numpy.save"),
        (np.zeros((2, 3, 32, 32)), "expected an array of float32, got float64"),
        (np.zeros((2, 3, 32, 32), np.uint8), "got uint8; try x.astype(numpy.float32)"),
        (np.zeros((1, 3, 32, 32), np.float32), "expected 2x3x32x32 for input, got 1x3x32x32"),
        (np.zeros((0, 3, 32, 32), np.float32), "expected 2x3x32x32 for input, got 0x3x32x32"),
        (np.zeros((), np.float32), "got scalar"),
        (np.array([{}], object), "expected an array of numpy.save"),
    ],
)
def test_inputs_that_are_refused(capsys: Any, saved: Path, content: Any, text: str) -> None:
    if isinstance(content, bytes):
        (saved.parent / "bad.npy").write_bytes(content)
    else:
        np.save("bad.npy", content, allow_pickle=True)
    assert text in refused(capsys, "run", "model.sinf", "--input", "bad.npy")
    assert text in refused(capsys, "bench", "model.sinf", "--input", "bad.npy")


@pytest.mark.parametrize("command", ["inspect", "run", "bench"])
def test_files_that_are_refused(capsys: Any, saved: Path, command: str) -> None:
    whole = saved.read_bytes()
    assert "No such file" in refused(capsys, command, "none.sinf")
    Path("folder.sinf").mkdir()
    assert "folder.sinf: Is a directory" in refused(capsys, command, "folder.sinf")
    contents = (b"", b"hello" * 50, whole[:200], whole[:-64], whole[:300] + b"x" + whole[301:])
    for content in contents:
        Path("bad.sinf").write_bytes(content)
        err = refused(capsys, command, "bad.sinf")
        assert "bad.sinf: " in err and "try" in err
    Path("bad.sinf").write_bytes(whole[:8] + b"\2" + whole[9:])
    assert "expected a model file of version 1, got version 2" in refused(
        capsys, command, "bad.sinf"
    )


def test_bench(capsys: Any, saved: Path, module: str) -> None:
    code, out, err = run(
        capsys, "bench", "model.sinf", "--threads", "1,2", "--seconds", "0.1", "--json"
    )
    assert (code, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert [(row["engine"], row["threads"]) for row in rows] == [
        ("sparseinfer", 1), ("sparseinfer", 2),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["items_per_s"] > 0 and row["calls"] > 0
    # Two images a call.
    row = rows[0]
    assert row["items_per_s"] <= 2 * 1e3 / row["min_ms"]


def test_bench_beside_others(
    capsys: Any, folder: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run(capsys, "export", f"{module}:with_example", "-o", "m.sinf", "--baselines", "none")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    code, out, err = run(
        capsys, "bench", "m.sinf", "--seconds", "0.05", "--compare", "torch,openvino",
        "--source", f"{module}:small",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "sparseinfer" in out and "openvino was not timed: openvino is not installed" in out
    np.save("y.npy", np.ones((2, 6), np.float32))
    code, out, _ = run(
        capsys, "bench", "m.sinf", "--seconds", "0.05", "--compare", "torch", "--json",
        "--source", f"{module}:small", "--input", "y.npy",
    )  # fmt: skip
    assert json.loads(out)["rows"][1]["difference"] < 1e-5
    other = nn.Linear(6, 3).eval()
    torch.export.save(torch.export.export(other, (torch.zeros(2, 6),)), "other.pt2")
    code, out, _ = run(
        capsys, "bench", "m.sinf", "--seconds", "0.05", "--compare", "torch", "--json",
        "--source", "other.pt2",
    )  # fmt: skip
    assert "it is another model" in json.loads(out)["rows"][1]["why_not"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--compare", "torch"], "expected --source with --compare"),
        (["--compare", "tensorrt"], "expected --compare of torch, onnxruntime, openvino"),
        (["--compare", "torch", "--source", "m.onnx"], "m.onnx: No such file"),
        (["--threads", "0"], "expected thread counts as --threads"),
        (["--threads", "two"], "expected thread counts as --threads"),
        (["--seconds", "0"], "'--seconds'"),
    ],
)
def test_benches_that_are_refused(
    capsys: Any, saved: Path, arguments: list[str], text: str
) -> None:
    assert text in refused(capsys, "bench", "model.sinf", *arguments)


def test_outputs_are_named_by_where_they_stand() -> None:
    x = torch.zeros(1)
    outputs = {"a": (x, None, [x]), "b": x}
    assert list(named_outputs(outputs)) == ["a.0", "a.2.0", "b"]
    assert list(named_outputs((x, x))) == ["0", "1"] and list(named_outputs(x)) == ["output"]


@pytest.mark.parametrize("command", ["export", "run", "bench"])
def test_help_has_examples(capsys: Any, command: str) -> None:
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "") and f"sparseinfer {command} model" in out
