"""Conversion to int8 end to end: networks, their reports, and layers that stay wider."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from sparseinfer import Report, convert_to_sparse, load_converted, report, to_dense
from sparseinfer.convert import rivals
from sparseinfer.convert.calibrate import calibrate
from sparseinfer.convert.decide import Decider
from sparseinfer.convert.dense_int8 import dense_int8
from sparseinfer.convert.from_quantized import from_quantized, int8_weight
from sparseinfer.convert.onnx_int8 import onnxruntime_int8, openvino_int8, quantized_layer
from sparseinfer.quantize import (
    add_fake_quant,
    quantize_weight,
    remove_fake_quant,
    scale_of_range,
    sqnr_db,
)

OPTIONS: dict[str, Any] = {
    "weights": "int8", "min_speedup": 0, "verify": False, "cache": False, "progress": False
}  # fmt: skip


def _pruned(model: nn.Module, amount: float = 0.8) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount=amount)
            prune.remove(module, "weight")
    return model.eval()


def _mlp() -> nn.Module:
    return _pruned(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)))


def _cnn() -> nn.Module:
    return _pruned(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(24 * 5 * 5, 10),
        )
    )  # fmt: skip


NETWORKS = {"mlp": (_mlp, (32, 64)), "cnn": (_cnn, (8, 3, 12, 12))}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    build, shape = NETWORKS[name]
    model, x = build(), torch.randn(shape)
    loader = DataLoader(
        TensorDataset(torch.randn(4, *shape).flatten(0, 1), torch.zeros(4 * shape[0])), 16
    )
    sparse = convert_to_sparse(model, example_inputs=x, calibration=loader, **OPTIONS)
    expected = model(x)
    assert sqnr_db(expected, sparse(x)) > 25
    assert (sparse(x).argmax(1) == expected.argmax(1)).float().mean() > 0.85
    found = report(sparse)
    for layer in found.layers:
        assert layer.format == "panel" and layer.weights == layer.activations == "int8"
        assert layer.sqnr_db is not None and layer.sqnr_db > 30 and not layer.wider
        assert layer.packed_bytes < 1024 + 0.3 * layer.dense_bytes
        assert layer.params["activations"] == "per tensor" and "dB of signal" in layer.reason
    for other in (
        copy.deepcopy(sparse),
        load_converted(model, sparse.state_dict()),
    ):
        assert torch.equal(other(x), sparse(x))
    assert sqnr_db(expected, to_dense(sparse)(x)) > 25


def test_without_calibration_linear_layers_round_by_token() -> None:
    model, x = _cnn(), torch.randn(8, 3, 12, 12)
    found = report(convert_to_sparse(model, example_inputs=x, **OPTIONS))
    kinds = {layer.name: layer for layer in found.layers}
    assert kinds["5"].params["activations"] == "per token" and kinds["5"].weights == "int8"
    for name in "02":
        assert kinds[name].weights == "float32" and kinds[name].is_sparse
        assert "not int8: a convolution needs calibrated activations" in kinds[name].reason
    assert "calibrated activations" in str(found)


def test_the_report_tells_the_types() -> None:
    model, x = _mlp(), torch.randn(32, 64)
    sparse = convert_to_sparse(
        model, example_inputs=x, calibration=x, evaluate=lambda own: own(x).abs().mean(), **OPTIONS
    )
    found = report(sparse)
    before, after = found.figures
    assert before == pytest.approx(model(x).abs().mean().item())
    assert after == pytest.approx(before, rel=0.1)
    assert f"Evaluated: {before:.4g} before, {after:.4g} now." in found.sentence
    text = str(found)
    for part in ("panel int8", "SQNR", "dB"):
        assert part in text
    assert "over torch int8" in found._repr_html_()
    assert Report.from_dict(json.loads(found.to_json())) == found
    again = report(convert_to_sparse(sparse, min_speedup=0))
    assert [layer.weights for layer in again.layers] == ["int8", "int8"]


def test_layers_are_compared_with_dense_int8() -> None:
    model, x = _mlp(), torch.randn(32, 64)
    call, why = dense_int8(model[0], None, x)
    if call is None:
        pytest.skip(f"torch has no int8 linear layer here: {why}")
    found = report(convert_to_sparse(model, example_inputs=x, **OPTIONS))
    for layer in found.layers:
        assert layer.over[rivals.TORCH_INT8] > 0 and layer.over[rivals.FLOAT32_SPARSE] > 0
        assert "x torch int8" in layer.reason
    # No layer gains a hundred thousand times.
    asked = {**OPTIONS, "min_speedup": 1e5}
    found = report(convert_to_sparse(model, example_inputs=x, **asked))
    for layer in found.layers:
        assert not layer.is_sparse and "not int8: measured" in layer.reason
        assert layer.weights == "float32"


def _ratios(
    monkeypatch: pytest.MonkeyPatch, over: dict[str, float], others: float = 3.0, wide: float = 2.0
) -> None:
    """Have each comparison of an int8 layer find the ratio that `over` has for its dense side."""

    def time(
        decider: Decider, layer: Any, dense: Any, sparse: Any, candidate: Any, result: Any
    ) -> None:
        gain = over.get(candidate.params.get("dense", "itself"), others)
        if candidate.params.get("kernel"):  # of torch, which is another candidate
            gain = 0.5
        if candidate.params.get("weights") != "int8":
            gain = wide
        candidate.dense_ms, candidate.sparse_ms, result.timing = gain, 1.0, "measured"
        candidate.speedup = candidate.low = candidate.high = gain

    monkeypatch.setattr(Decider, "time", time)

    def call(contest: rivals.Contest) -> rivals.Call:
        return contest.dense

    monkeypatch.setattr(rivals, "RIVALS", tuple(replace(own, make=call) for own in rivals.RIVALS))


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"itself": 0.5},
        {rivals.TORCH_INT8: 0.5},
        {rivals.FLOAT32_SPARSE: 1.01},
        {"ONNX Runtime int8": 0.5, "OpenVINO int8": 0.2},
    ],
    ids=str,
)
def test_what_counts_has_to_be_beaten(
    monkeypatch: pytest.MonkeyPatch, over: dict[str, float]
) -> None:
    _ratios(monkeypatch, over)
    model, x = _mlp(), torch.randn(32, 64)
    found = report(convert_to_sparse(model, example_inputs=x, **{**OPTIONS, "min_speedup": 1.05}))
    counts = {"itself", *(own.name for own in rivals.RIVALS if own.counts)}
    lost = counts & over.keys()
    for layer in found.layers:
        assert layer.is_sparse
        if lost:
            assert (layer.weights, layer.speedup) == ("float32", 2.0)
            assert f"measured {over[min(lost)]:.3g}" in layer.wider
            assert layer.wider in layer.reason and "less than the 1.05x asked" in layer.wider
            assert lost == {"itself"} or min(lost) in layer.wider
        else:
            assert (layer.weights, layer.speedup, layer.wider) == ("int8", 3.0, "")
            assert layer.over == {
                own.name: over.get(own.name, 3.0)
                for own in rivals.RIVALS
                if "int8" in own.activations
            }
            assert "3.00x torch int8, 3.00x float32 sparse" in layer.reason
    text = str(found)
    if not lost:
        assert "OpenVINO" in text and "over ONNX Runtime int8" in found._repr_html_()


def test_rivals_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    model, x = _mlp(), torch.randn(32, 64)
    for layer in report(convert_to_sparse(model, example_inputs=x, **OPTIONS)).layers:
        assert not layer.over.keys() & {"ONNX Runtime int8", "OpenVINO int8"}


ONE_LAYER = [
    (nn.Linear(24, 10), (3, 7, 24)),
    (nn.Linear(24, 10, bias=False), (24,)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
    (nn.Conv1d(4, 6, 5, dilation=2, groups=2), (2, 4, 19)),
]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("dense", "shape"), ONE_LAYER, ids=str)
def test_engines_of_others_compute_the_layer(
    engine: str, dense: Any, shape: tuple[int, ...]
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    x = torch.randn(shape)
    make = {"onnxruntime": onnxruntime_int8, "openvino": openvino_int8}[engine]
    found: Any = make(dense, None, x, 1)(x)
    y = torch.from_numpy(found[0]).reshape(dense(x).shape)
    assert sqnr_db(dense(x), y) > 25


def test_engines_of_others_refuse_what_onnx_lacks() -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    conv = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match="expected a convolution with plain zeros"):
        quantized_layer(conv, None, torch.randn(1, 4, 8, 8), requantize=False)


def test_layers_with_too_much_error_stay_wider() -> None:
    model, x = _mlp(), torch.randn(32, 64)
    found = report(
        convert_to_sparse(model, example_inputs=x, calibration=x, min_sqnr=1000, **OPTIONS)
    )
    for layer in found.layers:
        assert layer.is_sparse and layer.weights == "float32"
        assert "less than the 1000 dB asked" in layer.wider and layer.wider in layer.reason


def test_layers_without_zeros_run_in_int8_too() -> None:
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(32, 64)
    found = report(convert_to_sparse(model, example_inputs=x, **OPTIONS))
    assert found.layers[0].weights == "int8"


def test_other_layers_are_told_why() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.Linear(5, 8)).eval()
    model[1].weight.data[0, 0] = float("nan")
    model[0].weight.data[:, :2] = 0
    x = torch.randn(1, 4, 4, 4)
    found = report(convert_to_sparse(model, example_inputs=x, **OPTIONS))
    transposed, linear = found.layers
    assert "there is no int8 kernel for convtranspose2d" in transposed.reason
    assert "not int8: ValueError: expected finite weights" in linear.reason


def test_without_example_inputs_nothing_is_timed() -> None:
    model, x = _mlp(), torch.randn(32, 64)
    sparse = convert_to_sparse(model, calibration=x, **OPTIONS)
    assert sqnr_db(model(x), sparse(x)) > 25
    found = report(sparse)
    assert all(layer.weights == "int8" and layer.timing == "" for layer in found.layers)
    asked = {**OPTIONS, "min_speedup": 1.05}
    found = report(convert_to_sparse(model, calibration=x, **asked))
    assert all("pass example_inputs" in layer.wider for layer in found.layers)


def test_a_calibration_is_used_again() -> None:
    model, x = _cnn(), torch.randn(8, 3, 12, 12)
    found = calibrate(model, x, method="minmax")
    sparse: Any = convert_to_sparse(model, example_inputs=x, calibration=found, **OPTIONS)
    for name in "025":
        assert sparse[int(name)].activation_scale == found[name]
    with pytest.raises(ValueError, match="expected a calibration of this model's layers"):
        convert_to_sparse(
            nn.Sequential(nn.Sequential(nn.Linear(4, 4))), calibration=found, **OPTIONS
        )


def test_fine_tuned_in_fake_quant() -> None:
    model, x = _mlp(), torch.randn(64, 64)
    target, scales = model(x).detach(), calibrate(model, x)
    zeros = [model[place].weight == 0 for place in (0, 2)]
    before = sqnr_db(target, convert_to_sparse(model, calibration=scales, **OPTIONS)(x))
    add_fake_quant(model, scales)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
        for place, zero in zip((0, 2), zeros, strict=True):
            model[place].parametrizations.weight.original.data[zero] = 0
    expected = model(x).detach()
    with pytest.raises(ValueError, match=r"try convert_to_sparse\(remove_fake_quant\(model\)"):
        convert_to_sparse(model, calibration=scales, **OPTIONS)
    sparse = convert_to_sparse(remove_fake_quant(model), calibration=scales, **OPTIONS)
    torch.testing.assert_close(sparse(x), expected, rtol=1e-3, atol=1e-3)
    assert sqnr_db(target, sparse(x)) > before


# ---- quantised by others -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_dynamic_layers_of_torch_are_taken() -> None:
    dense = _mlp()
    quantized = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear}, dtype=torch.qint8)
    sparse: Any = from_quantized(quantized)
    x = torch.randn(7, 64)
    assert torch.equal(sparse[0].dense_weight(), quantized[0].weight().dequantize())
    assert sqnr_db(dense(x), sparse(x)) > 25 and sqnr_db(quantized(x), sparse(x)) > 25


@pytest.mark.filterwarnings("ignore")
def test_static_layers_of_torch_are_taken() -> None:
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    dense, x = torch.ao.quantization.QuantWrapper(_cnn()).eval(), torch.randn(8, 3, 12, 12)
    expected = dense(x)
    dense.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    fused = torch.ao.quantization.fuse_modules(dense, [["module.0", "module.1"]])
    prepared = torch.ao.quantization.prepare(fused)
    prepared(x)
    quantized = torch.ao.quantization.convert(prepared)
    with pytest.raises(ValueError, match=r"expected example_inputs that reach module\.0"):
        from_quantized(quantized)
    sparse: Any = from_quantized(quantized, x)
    assert sparse.module[0].activation == "relu" and sparse.module[5].activation == "none"
    assert sparse.module[0].activation_scale.zero_point == int(quantized.quant.zero_point)
    assert torch.equal(sparse.module[2].dense_weight(), quantized.module[2].weight().dequantize())
    assert sqnr_db(expected, sparse(x)) > 25


@pytest.mark.filterwarnings("ignore")
def test_weights_of_others_that_do_not_fit() -> None:
    weight = torch.randn(4, 6)
    plain = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    assert torch.equal(int8_weight(plain).dequantize(), plain.dequantize())
    with pytest.raises(ValueError, match="zero points of 0, got 3"):
        int8_weight(torch.quantize_per_tensor(weight, 0.1, 3, torch.qint8))
    with pytest.raises(ValueError, match=r"got torch\.quint8"):
        int8_weight(torch.quantize_per_tensor(weight, 0.1, 0, torch.quint8))
    columns = torch.quantize_per_channel(
        weight, torch.ones(6), torch.zeros(6, dtype=torch.long), 1, torch.qint8
    )
    with pytest.raises(ValueError, match="got some along axis 1"):
        int8_weight(columns)
    with pytest.raises(ValueError, match="expected a model with quantised linear layers"):
        from_quantized(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="got dict"):
        from_quantized({})  # type: ignore[arg-type]


def test_scales_of_a_qdq_pair_are_taken() -> None:
    from sparseinfer import SparseLinear

    layer = nn.Linear(12, 6)
    scales = torch.rand(6) * 0.01 + 0.01
    rounded = quantize_weight(layer.weight, scales)
    layer.weight.data = rounded.dequantize()
    sparse = SparseLinear.from_dense(
        layer, weights="int8", scales=scales, input_scale=scale_of_range(-1, 1)
    )
    assert torch.equal(sparse.dense_weight(), layer.weight)


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"calibration": torch.zeros(0, 64)}, ValueError, "with elements"),
        ({"calibration": []}, ValueError, "got no batch"),
        ({"calibration": torch.zeros(4, 63)}, ValueError, "that the model takes"),
        ({"calibration": torch.full((4, 64), float("nan"))}, ValueError, "256 NaN or Inf"),
        ({"calibration": 3}, TypeError, "got int"),
        ({"min_sqnr": float("nan")}, ValueError, "expected min_sqnr in decibels"),
        ({"activations": "int16"}, NotImplementedError, "kernels for int16 activations"),
        ({"activations": "float32"}, NotImplementedError, "widen int8 weights"),
        ({"activations": "bfloat16"}, ValueError, "got int8 and bfloat16"),
        ({"weights": "float32", "calibration": torch.ones(4, 64)}, ValueError, "no calibration"),
        ({"weights": "int4"}, NotImplementedError, "int4 weights"),
        ({"value_type": "bfloat16"}, TypeError, "expected weights or value_type"),
        ({"evaluate": lambda model: "good"}, TypeError, "return a number, got str"),
    ],
)
def test_what_cannot_be_converted(
    options: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        convert_to_sparse(_mlp(), **{**OPTIONS, **options})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("calibrated", [True, False])
def test_transformers_models_come_back(calibrated: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=100,
    )  # fmt: skip
    model, tokens = _pruned(transformers.BertForMaskedLM(config)), torch.arange(8)[None]
    examples = [{"input_ids": tokens}] if calibrated else None
    sparse: Any = convert_to_sparse(
        model, example_inputs={"input_ids": tokens}, calibration=examples, **OPTIONS
    )
    sparse.save_pretrained(tmp_path)
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    expected = sparse(tokens).logits
    assert torch.equal(again(tokens).logits, expected)
    half = transformers.BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert sqnr_db(expected, half(tokens).logits) > 20


def test_batches_in_a_tuple_are_arguments() -> None:
    model, x = nn.Sequential(nn.Linear(4, 2)).eval(), torch.rand(12, 4)
    with pytest.raises(ValueError, match=r"try list\(...\) of it where it holds batches"):
        calibrate(model, x.split(4))
    assert calibrate(model, list(x.split(4))).batches == 3
