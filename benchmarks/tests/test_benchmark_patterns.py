"""The suites of structured zeros and of time against work: their weights, rows, table and plot."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import cases, linearity, suites, table, targets
from benchmarks.cases import ConvCase, LinearCase, Pattern
from benchmarks.layer_data import make_weight
from benchmarks.results import Results, Row
from sparseinfer import report
from sparseinfer.formats import detect_pattern
from sparseinfer.timing.rounds import Plan, Quartiles, Timing

FAST = Plan(rounds=3, floor=3, sample=1e-6, least=0.0, budget=0.0)
SHAPES = ((96, 64), (32, 16, 3, 3))


# ---- weights


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", cases.STRUCTURED, ids=lambda p: f"{p.name} {p.sparsity}")
def test_structured_weights_have_the_zeros_that_are_asked_for(
    shape: tuple[int, ...], pattern: Pattern
) -> None:
    weight = make_weight(shape, pattern)
    assert weight.shape == shape
    zeros = float((weight == 0).float().mean())
    # Whole rows, channels and blocks are counted, not weights.
    steps = {"rows": shape[0], "inputs": shape[1], "both": shape[1]}.get(pattern.channels)
    assert zeros == pytest.approx(pattern.sparsity, abs=1 / (steps or weight.numel() // 16))
    assert not weight[weight == 0].signbit().any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", cases.STRUCTURED, ids=lambda p: f"{p.name} {p.sparsity}")
def test_every_structure_is_detected_and_named_in_the_report(
    shape: tuple[int, ...], pattern: Pattern
) -> None:
    weight = make_weight(shape, pattern)
    found = detect_pattern(weight)
    if pattern.channels:
        rows, inputs = found.zero_rows, found.zero_channels
        expected = f"channel: {rows} rows, {inputs} inputs"
        if pattern.channels != "both":
            expected = f"channel: {max(rows, inputs)} {pattern.channels}"
            assert rows * inputs == 0
    else:
        # Of 4:8 and 2:4 the smaller group would be named, if it fitted.
        expected = pattern.name
    assert str(found) == expected
    layer: nn.Module = nn.Linear(shape[1], shape[0])
    if len(shape) == 4:
        layer = nn.Conv2d(shape[1], shape[0], 3)
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(shape[0])})
    assert report(layer).layers[0].pattern == expected
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report(layer))
    assert expected in console.export_text()


def test_a_matrix_that_is_not_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a matrix of 16x1 blocks, got 24x8"):
        make_weight((24, 8), Pattern(0.5, block=(16, 1)))


def test_names_of_patterns_differ() -> None:
    names = [(pattern.name, pattern.sparsity) for pattern in cases.STRUCTURED]
    assert len(set(names)) == len(names)
    assert {"2:4", "4:8", "1:4", "block 4x1", "block 8x1", "block 16x1"} <= {n for n, _ in names}


def test_every_structure_meets_random_zeros_of_the_same_sparsity() -> None:
    random = {pattern.sparsity for pattern in cases.STRUCTURED if pattern.name == "unstructured"}
    assert {pattern.sparsity for pattern in cases.STRUCTURED} == random


# ---- suites


@pytest.mark.parametrize("case", [LinearCase(32, 64, 3), ConvCase(16, 32, 5, 3)])
@pytest.mark.parametrize(
    ("pattern", "contenders"),
    [
        (Pattern(0.5, block=(8, 1)), ["panel", "csr"]),
        (Pattern(0.75, channels="both"), ["panel", "csr"]),
        (Pattern.n_m(4, 8), ["panel", "csr", "nm"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_formats_meet_dense_on_structured_zeros(
    case: cases.Case, pattern: Pattern, contenders: list[str]
) -> None:
    before = torch.get_num_threads()
    try:
        rows = suites.measure(suites.Job("patterns", case, pattern), 1, FAST)
    finally:
        torch.set_num_threads(before)
    assert [row.contender for row in rows] == contenders
    assert {row.pattern for row in rows} == {pattern.name}


def test_the_suite_has_every_operation_and_number_of_tokens() -> None:
    jobs = list(suites.jobs(["patterns"]))
    groups = {job.case.group for job in jobs}
    assert groups == {"linear N=1", "linear N=8", "linear N>=128", "conv 3x3", "conv 1x1"}
    assert len(jobs) == len(cases.PATTERNS) * len(cases.STRUCTURED)
    assert {job.case for job in suites.jobs(["patterns"], quick=True)} == set(cases.PATTERNS)


def test_work_spans_from_1e5_to_1e8_non_zeros() -> None:
    jobs = list(suites.jobs(["linearity"]))
    non_zeros = sorted({job.case.m * job.case.k * (1 - job.pattern.sparsity) for job in jobs})
    assert non_zeros[0] == pytest.approx(1e5, rel=0.05)
    assert non_zeros[-1] == pytest.approx(1e8, rel=0.05)
    assert {job.case.n for job in jobs} == {1, 8, 128}
    # Three sizes at least, so that a quick run has a line too.
    quick = {job.case.m for job in suites.jobs(["linearity"], quick=True)}
    assert len(quick) >= 3 and max(quick) < 3200


# ---- what becomes of the rows


def row_at(nnz: int, seconds: float, **changes: object) -> Row:
    row = Row(
        suite="linearity", group="linear N=8", case="linear", op="linear", m=8, k=8, n=8,
        pattern="unstructured", sparsity=0.5, nnz=nnz, threads=1, promised=False,
        contender="kernel", kernel="panel.linear.scalar", rounds=3,
        dense=Timing(Quartiles(1.0, 1.0, 1.0), 1.0, 1),
        sparse=Timing(Quartiles(seconds, seconds, seconds), seconds, 1),
        speedup=Quartiles(2.0, 2.0, 2.0), dense_bytes=256, packed_bytes=40, copies=(1, 1),
    )  # fmt: skip
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


def results_of(rows: list[Row]) -> Results:
    return Results(
        date="2026-01-02", command="python -m benchmarks.run",
        commit={"hash": "0123456789abcdef", "dirty": False},
        versions={"torch": "2.6.0", "torch_cpu_capability": "AVX2"},
        machine={"cpu": "A CPU", "cores": 2, "os": "An OS"}, settings={"quick": False},
        complete=True, rows=rows,
    )  # fmt: skip


STRAIGHT = [row_at(10**power, 3e-10 * 10 ** (0.9 * power)) for power in range(5, 9)]


def test_points_on_a_line_deviate_by_nothing() -> None:
    (line,) = linearity.lines_of(STRAIGHT)
    assert line.slope == pytest.approx(0.9)
    assert line.deviation == pytest.approx(0, abs=1e-9)
    assert line.work == tuple(8 * 10**power for power in range(5, 9))
    assert line.at(8e6) == pytest.approx(STRAIGHT[1].sparse.seconds.median)


def test_the_deviation_is_that_of_the_furthest_point() -> None:
    bent = [*STRAIGHT[:1], row_at(10**6, 2 * STRAIGHT[1].sparse.seconds.median), *STRAIGHT[2:]]
    (line,) = linearity.lines_of(bent)
    shares = [row.sparse.seconds.median / line.at(row.nnz * 8) - 1 for row in bent]
    assert line.deviation == pytest.approx(max(map(abs, shares)))
    assert line.deviation > 0.3


def test_lines_are_kept_apart_and_too_few_points_are_none() -> None:
    two = [dataclasses.replace(row, threads=2) for row in STRAIGHT]
    other = [dataclasses.replace(row, n=1) for row in STRAIGHT[:2]]
    lines = linearity.lines_of([*STRAIGHT, *two, *other, row_at(10**9, 1.0, suite="kernels")])
    assert [(line.threads, line.n) for line in lines] == [(1, 8), (2, 8)]


@pytest.mark.parametrize(("factor", "met"), [(1.1, True), (2.0, False)])
def test_the_summary_says_whether_time_is_a_straight_line(factor: float, met: bool) -> None:
    bent = [*STRAIGHT[:1], row_at(10**6, factor * STRAIGHT[1].sparse.seconds.median)]
    checks = targets.summarise([*bent, *STRAIGHT[2:]])
    (check,) = (check for check in checks if check.name.startswith(targets.LINEARITY))
    assert (check.expected, check.at_most, check.met, check.cases) == (0.15, True, met, 4)


def test_the_table_shows_structures_and_lines() -> None:
    rows = [
        row_at(10, 1.0, suite="patterns", contender="panel", pattern="block 4x1"),
        row_at(10, 1.0, suite="patterns", contender="panel", pattern="1:4", sparsity=0.75),
        row_at(10, 1.0, suite="patterns", contender="nm", pattern="1:4", sparsity=0.75),
        *STRAIGHT,
    ]
    text = table.speedup_tables(results_of(rows))
    assert "| cases, zeros, format | 50% | 75% |" in text
    assert "| linear N=8, block 4x1, panel | 2.00 | - |" in text
    assert "| linear N=8, 1:4, nm | - | 2.00 |" in text
    assert "| N=8, 1 thread | 8.0e+05 to 8.0e+08 | 0.900 | 0% |" in text
    # These suites have no place in the table of the kernels.
    assert "| sparsity |" not in text


def test_the_plot_of_time_against_work_is_a_png(tmp_path: Path) -> None:
    rows = [*STRAIGHT, *(dataclasses.replace(row, n=128, threads=2) for row in STRAIGHT)]
    linearity.draw(results_of(rows), tmp_path / "work.png")
    assert (tmp_path / "work.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="got too few"):
        linearity.draw(results_of(STRAIGHT[:2]), tmp_path / "none.png")
