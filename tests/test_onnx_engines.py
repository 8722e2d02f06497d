"""Engines of ONNX models of any batch and in bfloat16, and what finds a fault in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import some_slow
from networks import SMALL
from onnx_models import onnx_model, quick
from test_further_networks import Pools
from test_onnx_networks import NETWORKS
from test_transformer_networks import tokens
from torch import Tensor, nn

from sparseinfer.export.engine import load_engine
from sparseinfer.export.errors import UnsupportedOperators
from sparseinfer.export.from_onnx.table import OPERATORS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
node = onnx.helper.make_node


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def exported(model: nn.Module, inputs: dict[str, Tensor], path: Path, batched: bool = True) -> Path:
    axes = {name: {0: "batch"} for name in inputs} if batched else None
    torch.onnx.export(
        model, tuple(inputs.values()), path, dynamo=False, input_names=list(inputs),
        dynamic_axes=axes,
    )  # fmt: skip
    return path


@pytest.mark.filterwarnings("ignore")
# Swin's masks are of windows, and have them once more for each sample.
@pytest.mark.parametrize("name", some_slow(sorted(NETWORKS.keys() - {"swin"}), "bert"))
def test_any_batch(name: str, tmp_path: Path) -> None:
    model, inputs = NETWORKS[name]()
    path = exported(model, inputs, tmp_path / "m.onnx")
    quick(path, inputs, dynamic="batch").save(tmp_path / "m.sinf")
    engine = load_engine(tmp_path / "m.sinf")
    with torch.no_grad():
        for batch in (1, 2, 5):
            other = {key: torch.cat([x.flip(0)] * batch)[:batch] for key, x in inputs.items()}
            y = model(*other.values())
            assert engine(**other).shape == y.shape
            assert (engine(**other) - y).abs().max() <= 1e-5 * max(1, y.abs().max())


@pytest.mark.filterwarnings("ignore")
def test_batches_that_are_refused(tmp_path: Path) -> None:
    model, x = SMALL["mlp"]()
    fixed = exported(model, {"x": x}, tmp_path / "m.onnx", batched=False)
    with pytest.raises(ValueError, match=r"whose batch is open for dynamic, got \[3, 784\] of x"):
        quick(fixed, x, dynamic="batch")
    sums = [node("ReduceMax", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])]
    with pytest.raises(ValueError, match="keeps it in dimension 0"):
        quick(onnx_model(sums, {}, ("batch", 4)), torch.ones(2, 4), dynamic="batch")
    with pytest.raises(ValueError, match="expected dynamic of x, got 'z'"):
        quick(onnx_model(sums, {}, ("batch", 4)), torch.ones(2, 4), dynamic={"z": {0: "batch"}})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activations", some_slow(["float32", "bfloat16"], "bfloat16"))
def test_bfloat16(activations: str, tmp_path: Path) -> None:
    model, x = SMALL["simple_cnn"]()
    path = exported(model, {"x": x}, tmp_path / "m.onnx")
    given: dict[str, Any] = {"weights": "bfloat16", "activations": activations}
    engine = quick(path, x, golden=True, dynamic="batch", **given)
    report = engine.report()
    assert "outputs of bfloat16 within" in report.error and "ONNX Runtime" in report.error
    assert engine.selftest() <= 1
    assert torch.equal(engine(x), quick(model, x, **given)(x))
    steps = [node("QuantizeLinear", ["x", "s"], ["q"]),
             node("DequantizeLinear", ["q", "s"], ["y"])]  # fmt: skip
    levels = onnx_model(steps, {"s": np.float32(0.1)})
    with pytest.raises(ValueError, match="got one that is quantised, and keeps its own scales"):
        quick(levels, **given)


@pytest.mark.filterwarnings("ignore")
def test_nodes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = SMALL["simple_cnn"]()
    path = exported(model, {"x": x}, tmp_path / "m.onnx", batched=False)
    found = quick(path).compare(path, x)
    assert found.first is None and all(row.error is not None for row in found.nodes)
    assert str(found).startswith("6 of 6 nodes compared with ONNX Runtime: none diverges")
    right = OPERATORS["MaxPool"]

    def wrong(call: Any) -> Any:
        y = right(call)
        call.graph.nodes[-1].op = "average_pool"
        return y

    monkeypatch.setitem(OPERATORS, "MaxPool", wrong)
    first = quick(path, check=False).compare(path, {"x": x}).first
    assert first is not None and first.op == "average_pool" and "MaxPool" in first.name


@pytest.mark.filterwarnings("ignore")
def test_masks_are_numbers_where_a_model_reads_them_so(tmp_path: Path) -> None:
    model, inputs = Pools().eval(), tokens()
    path = exported(model, inputs, tmp_path / "m.onnx")
    engine = quick(path, inputs, dynamic="batch")
    other = {name: torch.cat([x, x.flip(0), x]) for name, x in inputs.items()}
    with torch.no_grad():
        assert torch.allclose(engine(**other), model(*other.values()), atol=1e-6)


def test_integers_that_are_no_masks_and_no_ids() -> None:
    """They are refused with the node that reads them."""
    sums = [node("Cast", ["x"], ["i"], to=onnx.TensorProto.INT64), node("Add", ["i", "i"], ["y"])]
    with pytest.raises(UnsupportedOperators, match="Cast in 'i': it changes the type"):
        quick(onnx_model(sums, {}))
    masks = onnx_model([node("Add", ["x", "x"], ["y"])], {}, (2, 3))
    masks.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    masks.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(UnsupportedOperators, match=r"Add in 'y': it gives torch\.int64"):
        quick(masks)
