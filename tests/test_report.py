"""sparseinfer.report: the numbers, the sentence, and the forms it comes in."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from oracle import sparse_weight
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils import prune

from sparseinfer import LayerReport, Report, SparseLinear, convert_to_sparse, report
from sparseinfer.report import Whole


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    model[0].weight.data = sparse_weight((32, 64), 0.25)
    return model


def _timed(name: str, format: str, dense_ms: float, sparse_ms: float) -> LayerReport:
    return LayerReport(
        name, "linear", [8, 8], 16, 0.75, "unstructured", format, 256, 128, "because",
        timing="measured", inputs="1x8", N=[1], dense_ms=dense_ms, sparse_ms=sparse_ms,
        speedup=dense_ms / sparse_ms, low=1.0, high=2.0,
    )  # fmt: skip


def test_an_unconverted_model() -> None:
    model = _model()
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    found = report(model)
    first, second = found.layers
    assert (first.name, first.kind, first.shape, first.format) == ("0", "linear", [32, 64], "dense")
    assert first.nnz == int((model[0].weight != 0).sum())
    assert first.sparsity == pytest.approx(1 - first.nnz / 2048)
    assert (first.pattern, second.pattern) == ("unstructured", "unstructured")
    assert second.sparsity == 0.5 and first.dense_bytes == 8192 and first.speedup is None
    assert found.sentence.startswith("2 layers, ") and "zero" in found.sentence
    assert not found.converted and found.totals["ratio"] is None


def test_a_converted_model() -> None:
    model = convert_to_sparse(_model(), example_inputs=torch.randn(3, 64), min_speedup=0)
    found = report(model)
    first = found.layers[0]
    assert first.is_sparse and first.timing == "measured" and first.N == [3]
    assert first.inputs == "3x64"
    assert first.low is not None and first.high is not None and first.speedup is not None
    assert first.low <= first.speedup <= first.high
    assert first.packed_bytes == model[0].packed.numel() == first.bytes
    totals = found.totals
    assert totals["sparse_layers"] == 2 and totals["ms"] == pytest.approx(
        sum(layer.ms for layer in found.layers)
    )
    assert totals["ratio"] == pytest.approx(totals["ms"] / totals["dense_ms"])


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([], "The model has no linear or convolution layer."),
        (
            [_timed("a", "panel", 2.0, 0.5), _timed("b", "dense", 2.0, 3.0)],
            "1 of 2 layers run sparse; the measured layers take 0.62 of the dense time (1.60x); "
            "the whole model was not timed.",
        ),
        (
            [_timed("a", "panel", 1.0, 2.0)],
            "1 of 1 layers run sparse; the measured layers take 2.00 of the dense time (0.50x); "
            "the whole model was not timed.",
        ),
        (
            [_timed("a", "dense", 1.0, 2.0)],
            "0 of 1 layers run sparse, so the model is as fast as it was.",
        ),
    ],
)
def test_the_sentence(layers: list[LayerReport], sentence: str) -> None:
    assert Report(layers=layers, converted=True).sentence == sentence


def test_the_sentence_says_when_times_are_modelled() -> None:
    model = convert_to_sparse(_model(), min_speedup=0)
    assert "modelled, not measured" in report(model).sentence


def test_json(tmp_path: Path) -> None:
    found = report(convert_to_sparse(_model(), min_speedup=0))
    path = tmp_path / "report.json"
    text = found.to_json(path)
    assert path.read_text() == text + "\n" and list(tmp_path.iterdir()) == [path]
    data = json.loads(text)
    assert data["sentence"] == found.sentence and data["layers"][0]["format"] == "panel"
    assert Report.from_dict(data) == found


def test_json_of_a_model_that_was_timed() -> None:
    model = convert_to_sparse(_model(), example_inputs=torch.randn(3, 64), min_speedup=0)
    found = report(model)
    assert found.whole is not None and found.whole.rounds > 0
    data = json.loads(found.to_json())
    assert data["whole"]["dense_ms"] == found.whole.dense_ms
    assert Report.from_dict(data) == found
    del data["whole"], data["measured"], data["kept"]  # as an earlier version wrote it
    assert Report.from_dict(data).layers == found.layers


def _timed_model() -> Report:
    names = [f"encoder.stages.{i}.layers.{j}.convolution" for i in range(3) for j in range(2)]
    layers = [_timed(name, "panel", 2.0, 0.5) for name in [*names, "head"]]
    layers[3].format = "dense"
    layers[3].reason = "measured 1.01x (95% sure of 0.90x), less than the 1.05x asked"
    layers[4].format, layers[4].reason = "dense", layers[3].reason
    whole = Whole("eager", 0.02, 14.0, 5.0, 2.8, 2.7, 2.9, 16, 2.8, 2.7)
    return Report(layers, True, 2, "cpu", 1.05, whole, measured=9)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_it_fits_the_console(width: int) -> None:
    text = io.StringIO()
    Console(file=text, width=width).print(_timed_model())
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    (whole,) = [line for line in lines if "whole model " in line and "takes" not in line]
    assert "2.80x" in whole and ("(2.70-2.90)" in whole) is (width > 80)
    assert ("unstructured" in text.getvalue()) is (width == 200)
    folded = " ".join(text.getvalue().split())
    assert folded.count("less than the 1.05x asked") == 1  # one reason for both layers
    assert "the whole model takes 5 ms instead of 14 ms dense (2.80x, 95% sure of 2.70x)" in folded


def test_long_names_begin_where_they_differ_from_the_one_above() -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(_timed_model())
    names = [line.split()[0] for line in text.getvalue().splitlines() if "8x8" in line]
    assert names[0].startswith("encoder.stages.0") and names[-1] == "head"
    assert names[1] == "…1.convolution" and names[2] == "…1.layers.0.convolution"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_it_moves_with_the_model(copied) -> None:  # type: ignore[no-untyped-def]
    model = convert_to_sparse(_model(), min_speedup=0)
    assert report(copied(model)) == report(model)
    assert not any("report" in key for key in model.state_dict())


def test_part_of_a_converted_model() -> None:
    model = convert_to_sparse(_model(), min_speedup=0)
    (layer,) = report(nn.ModuleList([model[0]])).layers
    assert (layer.format, layer.reason) == ("panel", "it was sparse already")
    assert layer.sparsity == pytest.approx(report(model).layers[0].sparsity)
    assert report(SparseLinear(4, 4)).layers[0].pattern == "zero"


def test_forms_for_reading(capsys: pytest.CaptureFixture[str]) -> None:
    model = convert_to_sparse(_model(), example_inputs=torch.randn(3, 64))
    found = report(model)
    text = str(found)
    assert isinstance(found.table(), Table)
    for part in ("32x64", "linear", "3x64", found.sentence):
        assert part in text
    assert max(map(len, text.splitlines())) < 200
    console = Console(width=400)
    console.print(found)
    assert capsys.readouterr().out.split() == text.split()
    found.print()
    assert capsys.readouterr().out.startswith("converted for cpu")


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got dict"):
        report({})  # type: ignore[arg-type]
