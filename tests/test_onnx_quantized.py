"""Quantised ONNX models as engines: on bytes, by their own scales, beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import SMALL, prune
from onnx_models import onnx_model
from torch import Tensor, nn

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import load_engine
from sparseinfer.export.errors import UnsupportedOperators

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
quantization = pytest.importorskip("onnxruntime.quantization")
node = onnx.helper.make_node


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
    def __init__(self, like: Tensor) -> None:
        self.batches: Iterator[Any] = iter([{"x": torch.randn_like(like).numpy()} for _ in "123"])

    def get_next(self) -> Any:
        return next(self.batches, None)


def written(name: str, path: Path) -> Tensor:
    """A pruned network as ONNX, with scales of weights that leave it something to tell apart."""
    model, x = SMALL[name]()
    prune(model, 0.8)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data *= 2
    torch.onnx.export(model, (x,), path / "whole.onnx", dynamo=False, input_names=["x"])
    quantization.quant_pre_process(path / "whole.onnx", path / "m.onnx")
    return x


def by_onnxruntime(source: Any, x: Tensor) -> list[Tensor]:
    given = str(source) if isinstance(source, Path) else source.SerializeToString()
    session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
    return [torch.as_tensor(y) for y in session.run(None, {"x": x.numpy()})]


def nodes_of(engine: Any) -> list[Any]:
    return [found for found in engine.report().nodes if found["runs"]]


FORMS = [(form, by_row, signed) for form in ("QDQ", "QOperator") for by_row in (False, True)
         for signed in (False, True)]  # fmt: skip
QUICK = {("mobilenet_v2", "QDQ", True, False), ("resnet18", "QOperator", False, True)}
STATIC = [
    (name, *form) for name in ("mlp", "simple_cnn", "resnet18", "mobilenet_v2") for form in FORMS
]


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "form", "by_row", "signed"),
    [
        case if case in QUICK or case[0] == "mlp" else pytest.param(*case, marks=pytest.mark.slow)
        for case in STATIC
    ],
)
def test_static_networks(name: str, form: str, by_row: bool, signed: bool, tmp_path: Path) -> None:
    """Every node computes on bytes, with the zeros and the scales of the file.

    The outputs are within one step of the last scale of ONNX Runtime's: both sum exactly in int32,
    and a product that lies between two steps may be rounded to either, as float32 multiplies the
    scales in another order.
    """
    x = written(name, tmp_path)
    kinds = quantization.QuantType
    path = tmp_path / "q.onnx"
    quantization.quantize_static(
        tmp_path / "m.onnx", path, Reader(x), per_channel=by_row,
        quant_format=quantization.QuantFormat[form], weight_type=kinds.QInt8,
        activation_type=kinds.QInt8 if signed else kinds.QUInt8,
    )  # fmt: skip
    engine = compile(path, baselines=())
    nodes = nodes_of(engine)
    assert all(found["type"] == "uint8" for found in nodes), engine.report()
    assert not {"quantize", "dequantize"} & {found["op"] for found in nodes[1:-1]}
    assert "float32" not in engine.report().error
    pruned = [found["nnz"] / found["weights"] for found in nodes if found["weights"] > 5000]
    assert pruned and max(pruned) < 0.3
    (expected,) = by_onnxruntime(path, x)
    step = _step(path)
    assert (engine(x) - expected).abs().max() <= 1.001 * step
    assert expected.std() > 2 * step
    engine.save(tmp_path / "q.sinf")
    assert torch.equal(load_engine(tmp_path / "q.sinf")(x), engine(x))


def _step(path: Path) -> float:
    """The scale of the DequantizeLinear that gives the output."""
    graph = onnx.load(path).graph
    last = next(own for own in graph.node if graph.output[0].name in own.output)
    scale = next(own for own in graph.initializer if own.name == last.input[1])
    return float(onnx.numpy_helper.to_array(scale))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mlp", "simple_cnn"])
def test_dynamic_networks(name: str, tmp_path: Path) -> None:
    """Activations stay float32 where their scales are found at run time, and the report says so;
    the weights are the file's integers, which calibration data lets compute on bytes."""
    x = written(name, tmp_path)
    path = tmp_path / "d.onnx"
    quantization.quantize_dynamic(tmp_path / "m.onnx", path, per_channel=True)
    engine = compile(path, baselines=())
    assert "4 inputs of layers that the model rounds" in engine.report().error
    assert {found["type"] for found in nodes_of(engine)} == {"float32"}
    (expected,) = by_onnxruntime(path, x)
    assert (engine(x) - expected).abs().max() <= 0.02 * expected.abs().max()
    data = [torch.randn_like(x) for _ in range(3)]
    narrow = compile(path, baselines=(), weights="int8", calibration=data)
    assert sum(found["type"] == "uint8" for found in nodes_of(narrow)) >= 4
    assert (narrow(x) - expected).abs().max() <= 0.05 * expected.abs().max()


def rounded(x: np.ndarray, scale: float, zero: int, kind: Any = np.uint8) -> np.ndarray:
    info = np.iinfo(kind)
    return np.clip(np.round(x / scale) + zero, info.min, info.max).astype(kind)


def layer(weight: dict[str, Any], last: list[Any], kind: Any = np.uint8) -> onnx.ModelProto:
    """x -> bytes -> MatMul by a quantised weight -> what `last` makes of p."""
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        node("MatMul", ["d", "wd"], ["p"], name="product"), *last,
    ]  # fmt: skip
    constants = {"xs": np.float32(0.03), "xz": kind(100), "ys": np.float32(0.05), "yz": kind(90),
                 **weight}  # fmt: skip
    return onnx_model(nodes, constants, (3, 16))


W = np.random.default_rng(0).standard_normal((16, 5)).astype(np.float32)
ROUND = [node("QuantizeLinear", ["p", "ys", "yz"], ["pq"]),
         node("DequantizeLinear", ["pq", "ys", "yz"], ["y"])]  # fmt: skip
BY_TENSOR = {"w": rounded(W, 0.02, 0, np.int8), "ws": np.float32(0.02), "wz": np.int8(0)}
BY_ROW = {"w": rounded(W, 0.02, 0, np.int8), "wz": np.zeros(5, np.int8),
          "ws": np.linspace(0.01, 0.03, 5, dtype=np.float32)}  # fmt: skip
SHIFTED = {"w": rounded(W, 0.02, 128), "ws": np.float32(0.02), "wz": np.uint8(128)}
BY_COLUMN = {**BY_ROW, "wz": np.zeros(16, np.int8),
             "ws": np.linspace(0.01, 0.03, 16, dtype=np.float32)}  # fmt: skip
FAR = {"w": rounded(W, 0.005, 3), "ws": np.float32(0.005), "wz": np.uint8(3)}


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("weight", [BY_TENSOR, BY_ROW, SHIFTED])
def test_layers_on_bytes(weight: dict[str, Any], kind: Any) -> None:
    model = layer(weight, ROUND, kind)
    x = torch.randn(3, 16)
    engine = compile(model, baselines=())
    assert [found["op"] for found in nodes_of(engine)] == ["quantize", "linear", "dequantize"]
    (expected,) = by_onnxruntime(model, x)
    assert (engine(x) - expected).abs().max() <= 0.05 * 1.001  # one step: see above


def test_outputs_of_layers_may_be_floats() -> None:
    model = layer(BY_ROW, [node("Relu", ["p"], ["y"])])
    x = torch.randn(3, 16)
    engine = compile(model, baselines=())
    assert [found["op"] for found in nodes_of(engine)] == ["quantize", "linear"]
    (expected,) = by_onnxruntime(model, x)
    assert torch.allclose(engine(x), expected, atol=1e-5)


@pytest.mark.parametrize("weight", [FAR, {**BY_TENSOR, "ws": np.float32(2.0**-70)}])
def test_weights_that_are_no_int8_compute_in_float32(weight: dict[str, Any]) -> None:
    model = layer(weight, ROUND)
    x = torch.randn(3, 16)
    engine = compile(model, baselines=())
    assert "quantised operators that run in float32: product" in engine.report().error
    (expected,) = by_onnxruntime(model, x)
    assert (engine(x) - expected).abs().max() <= 0.05 * 1.001


def test_scales_along_the_sums_compute_in_float32() -> None:
    model = layer(BY_COLUMN, ROUND)
    next(own for own in model.graph.node if own.input[0] == "w").attribute[0].i = 0
    x = torch.randn(3, 16)
    engine = compile(model, baselines=())
    assert "run in float32: product" in engine.report().error
    (expected,) = by_onnxruntime(model, x)
    assert (engine(x) - expected).abs().max() <= 0.05 * 1.001


def test_weights_that_are_rounded_in_the_model() -> None:
    """As models that were trained for it have them: a float weight, and both nodes behind it."""
    nodes = [node("QuantizeLinear", ["v", "ws", "wz"], ["w"]), *layer(BY_TENSOR, ROUND).graph.node]
    constants = {"v": W, "ws": np.float32(0.02), "wz": np.int8(0), "xs": np.float32(0.03),
                 "xz": np.uint8(100), "ys": np.float32(0.05), "yz": np.uint8(90)}  # fmt: skip
    engine = compile(onnx_model(nodes, constants, (3, 16)), baselines=())
    assert [found["type"] for found in nodes_of(engine)] == ["uint8"] * 3


def test_integer_products_of_known_scales() -> None:
    """MatMulInteger of bytes that QuantizeLinear made."""
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("MatMulInteger", ["q", "w", "xz", "wz"], ["i"]), node("Cast", ["i"], ["f"], to=1),
        node("Mul", ["f", "both"], ["p"]), node("Add", ["p", "b"], ["y"]),
    ]  # fmt: skip
    constants = {
        "xs": np.float32(0.03), "xz": np.uint8(100), "both": np.float32(0.03) * BY_ROW["ws"],
        "w": BY_ROW["w"], "wz": np.int8(0), "b": np.arange(5, dtype=np.float32),
    }  # fmt: skip
    model, x = onnx_model(nodes, constants, (3, 16)), torch.randn(3, 16)
    engine = compile(model, baselines=())
    assert [found["op"] for found in nodes_of(engine)] == ["quantize", "linear"]
    (expected,) = by_onnxruntime(model, x)
    assert torch.allclose(engine(x), expected, atol=1e-4)


def test_what_is_refused() -> None:
    for change, text in (
        ({"xs": np.float32(0)}, "expected a scale of activations"),
        ({"xs": np.float32(np.nan)}, "expected a scale of activations"),
        ({"xs": np.full(16, 0.1, np.float32), "xz": np.zeros(16, np.uint8)}, "expected one number"),
        ({"xz": np.uint16(7)}, "unsupported type: tensor.uint16"),
    ):
        model = layer({**BY_TENSOR, **change}, ROUND)
        with pytest.raises((UnsupportedOperators, ValueError), match=text):
            compile(model, baselines=())
    other = layer({**BY_TENSOR, "xt": np.float32(0.04)}, ROUND)
    other.graph.node[1].input[1] = "xt"
    with pytest.raises(UnsupportedOperators, match="are not those that its bytes were made by"):
        compile(other, baselines=())
    with pytest.raises(ValueError, match="got one that is quantised, and keeps its own scales"):
        compile(layer(BY_TENSOR, ROUND), baselines=(), weights="int8",
                calibration=torch.randn(3, 16))  # fmt: skip
