"""Layers whose packed int8 weight torch's dense kernel multiplies, and when they are chosen."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from int8_oracle import check_int8
from oracle import sparse_weight
from torch import nn

from sparseinfer import (
    Report,
    SparseConv2d,
    SparseLinear,
    convert_to_sparse,
    load_converted,
    load_sparse_into,
    report,
    save_sparse,
    unpack,
)
from sparseinfer.convert import narrow, rivals
from sparseinfer.convert.decide import Decider
from sparseinfer.ops import run_dense_int8
from sparseinfer.ops.run_dense_int8 import has_dense_int8
from sparseinfer.quantize import ActivationScale, scale_of_range, sqnr_db

pytestmark = pytest.mark.skipif(
    not has_dense_int8(), reason="torch has no exact int8 kernel on this CPU"
)

SCALE = scale_of_range(-2.5, 3.0)


def _layer(k: int = 40, m: int = 16, scale: ActivationScale | None = SCALE) -> tuple[Any, Any]:
    dense = nn.Linear(k, m)
    dense.weight.data = sparse_weight((m, k), 0.8)
    sparse = SparseLinear.from_dense(dense, weights="int8", input_scale=scale)
    sparse.run_dense()
    return dense, sparse


@pytest.mark.parametrize("shape", [(40,), (1, 40), (3, 40), (2, 17, 40), (65, 40), (0, 40)])
def test_outputs_are_exact_sums(shape: tuple[int, ...]) -> None:
    dense, sparse = _layer()
    x = torch.randn(shape)
    check_int8(sparse(x), x, dense, SCALE)
    x = torch.randn(40, 7).t()
    check_int8(sparse(x), x, dense, SCALE)


def test_without_a_scale_the_whole_input_has_one() -> None:
    dense, sparse = _layer(scale=None)
    for x in (torch.randn(5, 40), torch.rand(3, 40), -torch.rand(2, 40)):
        check_int8(sparse(x), x, dense, scale_of_range(float(x.min()), float(x.max())))
    zeros = torch.zeros(2, 40)
    assert torch.equal(sparse(zeros), sparse.bias.expand(2, 16))
    x = torch.randn(3, 40)
    x[1, 4] = float("nan")
    y = sparse(x)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    x[1, 4] = float("inf")
    assert sparse(x)[1].isnan().all()


def test_biases_activations_and_types() -> None:
    dense, sparse = _layer()
    x = torch.randn(3, 40)
    sparse.bias.data += 1  # torch keeps the weight alone
    dense.bias.data += 1
    check_int8(sparse(x), x, dense, SCALE)
    relu = SparseLinear.from_dense(dense, activation="relu", weights="int8", input_scale=SCALE)
    relu.run_dense()
    torch.testing.assert_close(relu(x), sparse(x).relu())
    half = copy.deepcopy(sparse).bfloat16()
    assert half.runs_dense and sqnr_db(sparse(x), half(x.bfloat16())) > 25
    x.requires_grad_()
    sparse(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 16) @ sparse.dense_weight())


def test_scales_of_others_and_machines_without_the_kernel_run_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense, x = nn.Linear(40, 16), torch.randn(3, 40)
    scales = dense.weight.detach().abs().amax(1) / 50
    sparse = SparseLinear.from_dense(dense, weights="int8", scales=scales, input_scale=SCALE)
    expected = sparse(x)
    sparse.run_dense()
    assert torch.equal(sparse(x), expected)
    dense, sparse = _layer()
    monkeypatch.setattr(run_dense_int8, "has_dense_int8", lambda: False)
    check_int8(sparse(x), x, dense, SCALE)


@pytest.mark.parametrize("scale", [SCALE, None], ids=str)
def test_state_copies_and_pickles(scale: ActivationScale | None, tmp_path: Any) -> None:
    model, x = nn.Sequential(_layer(scale=scale)[1]), torch.randn(3, 40)
    expected, state = model(x), copy.deepcopy(model.state_dict())
    assert int(state["0.dense_kernel"]) == 1
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        load_converted(nn.Sequential(nn.Linear(40, 16)), state),
        load_converted(nn.Sequential(nn.Linear(40, 16)), state, assign=True),
    ):
        assert torch.equal(other(x), expected) and other[0].runs_dense
    plain = SparseLinear.from_dense(nn.Linear(40, 16), weights="int8")
    model[0].load_state_dict(plain.state_dict())
    assert not model[0].runs_dense and torch.equal(model(x), plain(x))
    model.load_state_dict(state)
    assert model[0].runs_dense and torch.equal(model(x), expected)
    model[0].load_state_dict(nn.Linear(40, 16).state_dict())
    assert model[0].runs_dense
    saved = save_sparse(state, tmp_path / "model.safetensors")
    dense = load_sparse_into(nn.Sequential(nn.Linear(40, 16)), saved.path)
    assert torch.equal(dense[0].weight, unpack(state["0.packed"]))


def test_what_has_no_dense_kernel_is_refused() -> None:
    wide = SparseLinear.from_dense(nn.Linear(4, 4))
    conv = SparseConv2d.from_dense(nn.Conv2d(4, 4, 3), weights="int8", input_scale=SCALE)
    for layer in (wide, conv):
        with pytest.raises(ValueError, match="expected a linear layer with an int8 weight"):
            layer.run_dense()
    state = {**conv.state_dict(), "dense_kernel": torch.ones((), dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="of one element, of a linear layer"):
        conv.load_state_dict(state)
    _, sparse = _layer()
    for bad in (3, torch.ones(2)):
        with pytest.raises(RuntimeError, match="of one element, of a linear layer"):
            sparse.load_state_dict({**sparse.state_dict(), "dense_kernel": bad})


def test_exported_programs_and_the_operator() -> None:
    _, sparse = _layer()
    x = torch.randn(3, 40)
    program = torch.export.export(nn.Sequential(sparse), (x,))
    assert torch.equal(program.module()(x), sparse(x))
    for scale in ((sparse.input_scale, sparse.input_zero_point), (None, None)):
        arguments = (x, sparse.packed, sparse.bias.detach(), *scale, 16, "none", 1)
        torch.library.opcheck(torch.ops.sparseinfer.linear_dense_int8.default, arguments)


@pytest.mark.slow
def test_compiled() -> None:
    model = nn.Sequential(_layer()[1], nn.ReLU(), _layer(16, 8, None)[1])
    x = torch.randn(5, 40)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


# ---- conversion --------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "weights": "int8", "min_speedup": 1.05, "verify": False, "cache": False, "progress": False
}  # fmt: skip


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(
    ("ours", "torchs", "over_float32", "runs"),
    [
        (3.0, 2.0, 3.0, "panel int8"),
        (0.8, 2.0, 3.0, "torch int8"),
        (0.8, 1.0, 3.0, "panel"),
        (0.8, 2.0, 0.9, "panel"),
    ],
)
def test_torchs_kernel_runs_where_ours_loses(
    monkeypatch: pytest.MonkeyPatch, ours: float, torchs: float, over_float32: float, runs: str,
    calibrated: bool,
) -> None:  # fmt: skip
    def time(
        decider: Decider, layer: Any, dense: Any, sparse: Any, candidate: Any, result: Any
    ) -> None:
        gain = torchs if candidate.params.get("kernel") else ours
        if candidate.params.get("dense") == rivals.FLOAT32_SPARSE:
            gain = over_float32
        elif candidate.params.get("weights") != "int8":
            gain = 2.0
        candidate.dense_ms, candidate.sparse_ms, result.timing = gain, 1.0, "measured"
        candidate.speedup = candidate.low = candidate.high = gain

    monkeypatch.setattr(Decider, "time", time)
    model, x = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)).eval(), None
    for place in (0, 2):
        model[place].weight.data *= torch.rand_like(model[place].weight) < 0.5  # type: ignore
    x = torch.randn(32, 64)
    sparse = convert_to_sparse(
        model, example_inputs=x, calibration=x if calibrated else None, **OPTIONS
    )
    found = report(sparse)
    assert [row.runs_as for row in found.rows] == [runs] * 2
    for own, layer in zip((sparse[0], sparse[2]), found.layers, strict=True):
        assert own.runs_dense == (runs == "torch int8")
        if runs == "torch int8":
            assert layer.params["activations"] == ("per tensor" if calibrated else "per call")
            assert "where ours measured 0.80x" in layer.reason and not layer.wider
            assert layer.packed_bytes > layer.shape[0] * layer.shape[1]
        if runs == "panel":
            assert f"torch's dense int8 kernel runs {torchs:.2f}x" in layer.wider
    if runs == "torch int8":
        assert found.sentence.startswith("0 of 2 layers run sparse and 2 dense in int8")
        assert sqnr_db(model(x), sparse(x)) > 25
        again = report(convert_to_sparse(sparse, min_speedup=0))
        assert {layer.format for layer in again.layers} == {"torch"}
    assert Report.from_dict(json.loads(found.to_json())) == found


def test_without_an_exact_kernel_torch_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "has_dense_int8", lambda: False)
    asked = {**OPTIONS, "min_speedup": 1e5}
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    found = report(convert_to_sparse(model, example_inputs=torch.randn(8, 64), **asked))
    assert not found.layers[0].is_sparse


def test_transformers_models_come_back(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=100,
    )  # fmt: skip
    model, tokens = transformers.BertForMaskedLM(config).eval(), torch.arange(8)[None]
    sparse: Any = convert_to_sparse(model, **{**OPTIONS, "min_speedup": 0})
    layers = [own for own in sparse.modules() if isinstance(own, SparseLinear)]
    for own in layers[::2]:
        own.run_dense()
    sparse.save_pretrained(tmp_path)
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    found = [own.runs_dense for own in again.modules() if isinstance(own, SparseLinear)]
    assert found == [own.runs_dense for own in layers] and sum(found) == len(layers[::2])
    assert torch.equal(again(tokens).logits, sparse(tokens).logits)
