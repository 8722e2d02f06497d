"""The model benchmarks: result file and table, from made-up rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.models import __main__ as command
from benchmarks.models import table
from benchmarks.models.rows import (
    Difference,
    ModelFailure,
    ModelResults,
    ModelRow,
    Skipped,
)
from sparseinfer.timing.rounds import Quartiles, Timing


def timing(milliseconds: float) -> Timing:
    seconds = milliseconds / 1e3
    return Timing(Quartiles(seconds, seconds, seconds), seconds, 1)


def made_up_row(ratio: float = 2.0, **changes: object) -> ModelRow:
    row = ModelRow(
        model="net", does="1 image", trained=False, sparsity=0.9, zeros=0.9, threads=1,
        converted_layers=3, left_layers={"head": "it has no zeros"}, conversion_seconds=1.5,
        dense_bytes=4_000_000, converted_bytes=1_000_000,
        difference=Difference(1e-7, 1e-7, 1e-7, 1.0, 1.0), rounds=15,
        dense=timing(10.0), converted=timing(10.0 / ratio), speedup=Quartiles(ratio, ratio, ratio),
    )  # fmt: skip
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


def made_up_results(*rows: ModelRow) -> ModelResults:
    return ModelResults(
        date="2026-01-02T03:04:05+00:00",
        command="python -m benchmarks.models",
        commit={"hash": "0123456789abcdef", "dirty": False},
        versions={"torch": "2.6.0", "torch_cpu_capability": "AVX2"},
        machine={"cpu": "A CPU", "cores": 2, "os": "An OS"},
        settings={"quick": False},
        complete=True,
        rows=list(rows),
    )


def test_result_files_are_read_as_they_were_written() -> None:
    images = made_up_row(channels_last=timing(8.0), speedup_over_channels_last=Quartiles(1, 2, 3))
    results = made_up_results(made_up_row(), images)
    results.skipped.append(Skipped("crepe", "try: pip install it"))
    results.failures.append(ModelFailure("gpt2", 0.8, 2, "it broke"))
    assert ModelResults.from_json(results.to_json()) == results


@pytest.mark.parametrize(("ratio", "slower"), [(0.969, True), (0.97, False), (1.5, False)])
def test_a_model_below_the_promise_is_marked(ratio: float, slower: bool) -> None:
    row = made_up_row(ratio)
    assert row.is_slower is slower
    assert ("(slower)" in table.gain(row)) is slower
    assert ("slower" in command.line_of(row)) is slower


def test_a_line_holds_a_figure_for_each_thread_count() -> None:
    rows = [
        made_up_row(2.0),
        made_up_row(0.5, threads=2, converted_layers=2, dense=timing(1234.0)),
        made_up_row(3.0, threads=2, sparsity=0.8, trained=True, dense_bytes=1_229_000_000),
    ]
    first, second = table.lines(rows)
    assert first == [
        "net: 1 image (random weights)", "90%", "10 / 1234", "5 / 20", "3 / 1; 2 / 1",
        "2.00 / 0.50 (slower)", "", "4 to 1",
    ]  # fmt: skip
    assert second[:4] == ["net: 1 image", "80%", "- / 10", "- / 3.33"]
    assert second[-1] == "1229 to 1"


def test_channels_last_has_a_column_of_its_own() -> None:
    row = made_up_row(channels_last=timing(8.0), speedup_over_channels_last=Quartiles(1, 1.6, 2))
    assert table.lines([row])[0][6] == "1.60"


def test_markdown_names_what_was_left_out() -> None:
    results = made_up_results(made_up_row())
    assert "not for quoting" not in table.markdown_section(results)
    results.complete = False
    results.skipped.append(Skipped("crepe", "try: pip install it"))
    results.failures.append(ModelFailure("gpt2", 0.8, 2, "it broke"))
    text = table.markdown_section(results)
    assert "crepe was skipped: try: pip install it" in text
    assert "gpt2 at 80% on 2 threads failed: it broke" in text
    assert "not for quoting" in text and "0123456789" in text


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    file, readme = tmp_path / "r.json", tmp_path / "README.md"
    file.write_text(made_up_results(made_up_row()).to_json())
    readme.write_text("a\n<!-- models:start -->\nold\n<!-- models:end -->\nb\n")
    table.main(file, readme)
    text = readme.read_text()
    assert text.startswith("a\n<!-- models:start -->\nWhole models")
    assert text.endswith("\n<!-- models:end -->\nb\n")
    assert "old" not in text
