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
from sparseinfer.convert.model_report import Whole


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


def _bert(rename: str = "encoder.layer.{}.attention.self.query") -> Report:
    """Twelve layers of one shape, of which two stay dense, and a head."""
    layers = [_timed(rename.format(i), "panel", 2.0, 0.5) for i in range(12)]
    for i, gain in ((3, "1.01"), (7, "1.02")):
        layers[i].format = "dense"
        layers[i].reason = f"measured {gain}x (95% sure of 0.90x), less than the 1.05x asked"
    return Report([*layers, _timed("head", "panel", 4.0, 1.0)], True, 2, "cpu", 1.05, measured=9)


def test_layers_of_one_shape_and_outcome_are_one_row() -> None:
    sparse, dense, head = _bert().rows
    assert sparse.title == "encoder.layer.*.attention.self.query (10 layers)"
    assert dense.title == "encoder.layer.*.attention.self.query (2 layers)"
    assert head.title == "head" and dense.names[0] == "encoder.layer.3.attention.self.query"
    assert (sparse.dense_ms, sparse.ms, sparse.speedup) == (20.0, 5.0, 4.0)
    assert (sparse.low, sparse.high, sparse.bytes) == (1.0, 2.0, 1280)
    assert (dense.ms, dense.is_sparse) == (4.0, False)


def test_what_differs_is_not_one_row() -> None:
    alike = [_timed(f"layers.{i}", "panel", 2.0, 0.5) for i in range(6)]
    assert len(Report(alike).rows) == 1
    alike[1].shape = [8, 9]
    alike[2].kind = "conv1d"
    alike[3].pattern = "2:4"
    alike[4].reason = "another"
    alike[5].name = "layers.5.inner"
    assert [row.title for row in Report(alike).rows] == [layer.name for layer in alike]


@pytest.mark.parametrize("name", [
    "encoder.layer.{}.attention.self.query",
    "a_part_of_a_name_that_is_longer_than_the_column_it_stands_in.{}.and_then_some_more_of_it",
    "{}." + ".".join(["deep"] * 30),
])  # fmt: skip
@pytest.mark.parametrize("shape", [[8, 8], [2048, 1024, 11, 11]])
def test_nothing_is_cut_at_80_columns(
    name: str, shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _bert(name)
    for layer in found.layers:
        layer.shape = shape
    found.whole = Whole("channels_last", 0.02, 1234.5, 123.4, 10.0, 9.9, 10.1, 16, 10.0, 9.9)
    monkeypatch.setenv("COLUMNS", "80")
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    lines = text.splitlines()
    head = next(line for line in lines if line.split()[:2] == ["layer", "weight"])
    weight, zeros = head.index("weight"), head.index("zeros")
    body = lines[lines.index(head) :]
    names = "".join(line[:weight].replace(" ", "") for line in body)
    assert f"{found.rows[0].name}(10layers)".replace(" ", "") in names
    shapes = "".join(line[weight:zeros].replace(" ", "") for line in body)
    assert "x".join(map(str, shape)) in shapes
    for part in ("1234", "123", "10.00x", "channels_last", "20", "4.00x"):
        assert part in text


def test_the_verdict_comes_first() -> None:
    for width in (80, 200):
        text = io.StringIO()
        Console(file=text, width=width).print(_timed_model())
        assert text.getvalue().startswith("5 of 7 layers run sparse; the whole model takes 5 ms")


def test_it_says_that_the_machine_is_busy() -> None:
    found = _timed_model()
    assert found.warning == "" and "busy" not in str(found)
    found.busy, found.load, found.doubted = 0.43, 5.21, 3
    assert found.warning == (
        "This machine is busy: other programs had the processor for 43% of the time that was "
        "measured (load average 5.2); 3 comparisons are in doubt, and are not kept. Stop them, or "
        "convert again when it is quiet."
    )
    assert "This machine is busy" in str(found) and "This machine is busy" in found._repr_html_()
    found.busy = 0.0
    assert found.warning.startswith("Some timings do not fit each other or the zeros; 3 ")
    assert Report.from_dict(found.to_dict()) == found


def test_notebooks_show_it_escaped() -> None:
    found = _bert("<script>{}")
    found.layers[3].reason = "1 < 2 & 3"
    html = found._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "1 &lt; 2 &amp; 3" in html
    assert html.startswith(f"<p><b>{found.sentence}</b></p>") and html.count("<table>") == 1
    assert html.count("<tr>") == 1 + len(found.rows) + 1


def test_the_rows_are_plain_data() -> None:
    data = json.loads(_bert().to_json())
    assert [row["layers"] for row in data["rows"]] == [10, 2, 1]
    assert data["rows"][1]["names"][0].startswith("encoder.layer.3.")


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
    found.busy = 0.0  # whatever runs beside the tests
    text = str(found)
    assert isinstance(found.table(), Table)
    for part in ("32x64", "linear", "3x64", found.sentence):
        assert part in text
    assert max(map(len, text.splitlines())) < 200
    console = Console(width=400)
    console.print(found)
    assert capsys.readouterr().out.split() == text.split()
    found.print()
    assert capsys.readouterr().out.startswith(found.sentence[:40])


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got dict"):
        report({})  # type: ignore[arg-type]
