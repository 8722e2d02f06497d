"""ONNX models as engines: what they compute, how they are called, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import SMALL, prune
from onnx_models import check, onnx_model, ops, quick
from torch import Tensor, nn

from sparseinfer import cli
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import load_engine
from sparseinfer.export.errors import UnsupportedOperators
from sparseinfer.export.from_onnx import reference

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
node = onnx.helper.make_node


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def exported(model: nn.Module, x: Tensor, path: Path, dynamo: bool = False, **more: Any) -> Path:
    torch.onnx.export(model, (x,), path, dynamo=dynamo, verbose=False, **more)
    return path


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        *((name, False) for name in SMALL),
        ("mlp", True),
        ("mobilenet_v2", True),
        *(pytest.param(name, True, marks=pytest.mark.slow)
          for name in ("simple_cnn", "resnet18", "resnet50", "mobilenet_v1")),
    ],
)  # fmt: skip
def test_networks_of_both_exporters(name: str, dynamo: bool, tmp_path: Path) -> None:
    """The engine of the file has the nodes of the model's own, and computes the same."""
    model, x = SMALL[name]()
    prune(model, 0.8)
    engine = quick(exported(model, x, tmp_path / "m.onnx", dynamo))
    own = quick(model, x)
    assert ops(engine) == ops(own)
    zeros = [(n["weights"], n["nnz"]) for n in engine.report().nodes if n["weights"]]
    assert zeros == [(n["weights"], n["nnz"]) for n in own.report().nodes if n["weights"]]
    with torch.no_grad():
        y = model(x)
    assert (engine(x) - y).abs().max() <= 1e-5 * y.abs().max()
    engine.save(tmp_path / "m.sinf")
    assert torch.equal(load_engine(tmp_path / "m.sinf")(x), engine(x))


@pytest.mark.filterwarnings("ignore")
def test_paths_and_models_in_memory_are_the_same(tmp_path: Path) -> None:
    model, x = SMALL["simple_cnn"]()
    path = exported(model, x, tmp_path / "m.onnx", input_names=["image.1"])
    expected = quick(path)(x)
    proto = onnx.load(path)
    before = proto.SerializeToString()
    for source in (str(path), proto, onnx_ir.load(path)):
        engine = quick(source, {"image.1": x})
        assert engine.inputs == [("image.1", (2, 3, 32, 32))]
        assert torch.equal(engine(x), expected)
        assert torch.equal(engine(**{"image.1": x}), expected)
    assert proto.SerializeToString() == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [11, 12, 13, 18])
def test_opsets(opset: int, tmp_path: Path) -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.clamp(self.norm(self.conv(x)), 0, 6)
            a = nn.functional.avg_pool2d(x, 2)
            b = nn.functional.max_pool2d(x, 3, 2, 1)
            c = torch.cat([nn.functional.silu(a), torch.tanh(b)], 1)
            return self.fc(x.mean((2, 3)).unsqueeze(0)).squeeze(0).softmax(-1), c

    model, x = Uses().eval(), torch.randn(2, 3, 8, 8)
    engine = quick(exported(model, x, tmp_path / "m.onnx", opset_version=opset))
    with torch.no_grad():
        expected = model(x)
    found = engine(x)
    assert isinstance(found, tuple) and len(found) == 2
    for y, own in zip(found, expected, strict=True):
        assert torch.allclose(y, own, atol=1e-5)


def test_matrix_products() -> None:
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    b = np.arange(3, dtype=np.float32)
    x = torch.randn(2, 4)
    for nodes in (
        [node("MatMul", ["x", "w"], ["y"])],
        [node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["y"])],
        [node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
        [node("Gemm", ["x", "w", "row"], ["y"])],
        [node("Gemm", ["x", "w", "one"], ["y"])],
        [node("Transpose", ["w"], ["t"]), node("Gemm", ["x", "t", "b"], ["y"], transB=1)],
    ):
        constants = {"w": w, "b": b, "row": b[None], "one": np.float32(3)}
        assert ops(check(onnx_model(nodes, constants, (2, 4)), x)) == ["linear"]
    three = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    check(onnx_model(three, {"w": w, "b": b}, (2, 5, 4)), torch.randn(2, 5, 4))


def test_windows() -> None:
    w = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    x = torch.randn(1, 3, 9, 8)
    for attributes in (
        {"pads": [0, 1, 2, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID"},
        {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    ):  # fmt: skip
        model = onnx_model([node("Conv", ["x", "w"], ["y"], **attributes)], {"w": w}, x.shape)
        assert ops(check(model, x)) == ["conv"]
    for attributes in (
        {"strides": [2, 2]}, {"pads": [1, 1, 0, 1], "strides": [2, 1]},
        {"ceil_mode": 1, "strides": [2, 2]},
    ):  # fmt: skip
        for kind in ("MaxPool", "AveragePool"):
            check(onnx_model([node(kind, ["x"], ["y"], kernel_shape=[3, 2], **attributes)], {},
                             x.shape), x)  # fmt: skip
    included = node(
        "AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    )
    check(onnx_model([included], {}, x.shape), x)
    for kind in ("GlobalAveragePool", "GlobalMaxPool"):
        check(onnx_model([node(kind, ["x"], ["y"])], {}, x.shape), x)
    line = onnx_model([node("Conv", ["x", "v"], ["y"], pads=[1, 0])], {"v": w[:, :, 0]}, (2, 3, 9))
    check(line, torch.randn(2, 3, 9))


def test_what_stays_or_goes() -> None:
    """Nodes that change nothing leave none, and SiLU is one."""
    x = torch.randn(1, 4)
    nodes = [
        node("Identity", ["x"], ["a"]), node("Dropout", ["a"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[0, 1]), node("Cast", ["c"], ["d"], to=1),
        node("Clip", ["d"], ["e"]), node("Unsqueeze", ["e", "zero"], ["f"]),
        node("Sigmoid", ["f"], ["s"]), node("Mul", ["s", "f"], ["y"]),
    ]  # fmt: skip
    engine = check(onnx_model(nodes, {"zero": np.array([0])}), x)
    assert ops(engine) == ["activation"]


def test_shapes_that_are_computed() -> None:
    """Chains of Shape and Gather, as exporters write views, are folded for the example's batch."""
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "first"], ["n"]),
        node("Unsqueeze", ["n", "axis"], ["m"]), node("Concat", ["m", "rest"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"]),
    ]  # fmt: skip
    constants = {"first": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    model = onnx_model(nodes, constants, ("batch", 2, "width"))
    assert check(model, torch.randn(3, 2, 5)).inputs == [("x", (3, 2, 5))]
    with pytest.raises(ValueError, match=r"leaves open as \[\?, 2, \?\], got none"):
        quick(model)
    with pytest.raises(ValueError, match=r"expected \[\?, 2, \?\] for x, got \[3, 3, 5\]"):
        quick(model, torch.zeros(3, 3, 5))


def test_examples() -> None:
    model = onnx_model([node("Relu", ["x"], ["y"])], {}, (2, 4))
    assert quick(model)(torch.ones(2, 4)).sum() == 8
    for example, error, text in (
        (torch.zeros(2, 4).double(), TypeError, "expected float32 on the CPU for x"),
        (torch.zeros(2, 5), ValueError, r"expected \[2, 4\] for x, got \[2, 5\]"),
        (torch.zeros(8), ValueError, r"expected \[2, 4\] for x, got \[8\]"),
        ({"z": torch.zeros(2, 4)}, TypeError, "got z which the model does not take"),
        ((1,), TypeError, "expected a tensor for x, got int"),
        ([torch.zeros(2, 4)] * 2, ValueError, "expected one example of the inputs, got 2"),
    ):
        with pytest.raises(error, match=text):
            quick(model, example)
    huge = onnx_model([node("Relu", ["x"], ["y"])], {}, (2**20, 2**20))
    with pytest.raises(ValueError, match="too large to make one up"):
        quick(huge)


def test_every_missing_operator_is_listed() -> None:
    nodes = [
        node("Asinh", ["x"], ["a"], name="first"), node("Shrink", ["a"], ["b"], name="second"),
        node("NonZero", ["b"], ["c"], name="third"), node("Cast", ["c"], ["d"], to=1, name="no"),
        node("Fancy", ["d"], ["e"], domain="own", name="fourth"),
        node("Softmax", ["x"], ["s"]),
        node("Slice", ["s", "three", "none", "one", "back"], ["y"], name="fifth"),
    ]  # fmt: skip
    numbers = {name: np.array([number]) for name, number in
               {"three": 3, "none": -5, "one": 1, "back": -1}.items()}  # fmt: skip
    with pytest.raises(UnsupportedOperators, match="got 5 that it has not") as caught:
        quick(onnx_model(nodes, numbers, outputs=("e", "y")))
    found = [(missing.op, missing.module) for missing in caught.value.missing]
    assert found == [("Asinh", "first"), ("Shrink", "second"), ("NonZero", "third"),
                     ("own.Fancy", "fourth"), ("Slice", "fifth")]  # fmt: skip
    assert "its step is -1" in str(caught.value)


def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseinfer.export.from_onnx.table import OPERATORS

    x = torch.randn(1, 3, 4, 4)
    w = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    model = onnx_model([node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])], {"w": w},
                       x.shape)  # fmt: skip
    monkeypatch.setitem(OPERATORS, "Relu", lambda call: call.value(0))
    with pytest.raises(RuntimeError, match="of ONNX Runtime's, got"):
        quick(model, x)
    assert "not compared" in str(quick(model, x, check=False).report())


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any, **more: Any) -> tuple[None, str]:
        return None, "onnxruntime is not installed"

    monkeypatch.setattr(reference, "onnxruntime_session", none)
    monkeypatch.setattr("sparseinfer.export.compile_onnx.onnxruntime_session", none)
    report = str(compile(onnx_model([node("Relu", ["x"], ["y"])])).report())
    assert "of onnx's ReferenceEvaluator (onnxruntime is not installed)'s" in report
    assert "not timed against ONNX Runtime: onnxruntime is not installed" in report


@pytest.mark.filterwarnings("ignore")
def test_int8_by_calibration(tmp_path: Path) -> None:
    model, x = SMALL["simple_cnn"]()
    path = exported(model, x, tmp_path / "m.onnx")
    data = torch.randn(16, 3, 32, 32)
    engine = quick(path, weights="int8", calibration=data, golden=True)
    report = engine.report()
    assert sum(found["type"] == "uint8" for found in report.nodes) >= 6
    assert "dB (SQNR) of the float32 engine" in report.error and engine.selftest() <= 1
    assert torch.equal(engine(x), quick(model, x, weights="int8", calibration=data)(x))


@pytest.mark.filterwarnings("ignore")
def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model, x = SMALL["mlp"]()
    prune(model, 0.9)
    exported(model, x, tmp_path / "m.onnx", input_names=["x"], dynamic_axes={"x": {0: "batch"}})

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(list(arguments))
        except SystemExit as done:
            code = int(done.code or 0)
        return (code, *capsys.readouterr())

    code, _, err = run("export", "m.onnx", "-o", "m.sinf")
    assert code != 0 and "leaves open as [?, 784]" in err and not Path("m.sinf").exists()
    code, out, err = run("export", "m.onnx", "-o", "m.sinf", "--example", "3x784")
    assert (code, err) == (0, "") and "of ONNX Runtime's" in out
    assert torch.allclose(load_engine("m.sinf")(x), model(x), atol=1e-5)
    code, out, _ = run(
        "bench", "m.sinf", "--source", "m.onnx", "--seconds", "0.05", "--threads", "1", "--json",
        "--compare", "torch,onnxruntime,openvino",
    )  # fmt: skip
    rows = {row["engine"]: row for row in json.loads(out)["rows"]}
    assert rows["onnxruntime"]["difference"] < 1e-5
    assert rows["torch"]["why_not"] == "torch runs no ONNX files"
