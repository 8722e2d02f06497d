"""Every usable native row on a few real shapes, beside dense PyTorch.

Run by ``pytest benchmarks --benchmark-only``.

Each result is checked against float64 before it is timed. These figures follow one row over time;
ratios to dense come from ``python -m benchmarks.run``, which times the two in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.cases import Case, ConvCase, LinearCase, Pattern
from benchmarks.layer_data import LayerData
from benchmarks.native import NativeRun, pack
from sparseinfer import _C

CASES: tuple[Case, ...] = (
    LinearCase(3072, 768, 1),
    LinearCase(768, 768, 128),
    ConvCase(128, 128, 28, 3),
    ConvCase(256, 64, 56, 1),
)
RANDOM = Pattern(0.9)
TWO_OF_FOUR = Pattern.n_m(2, 4)
THREADS = 1

ROWS: list[dict[str, Any]] = _C.rows()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run dense PyTorch on as many threads as the native rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def label(case: Case, pattern: Pattern) -> str:
    """Return the group in which pytest-benchmark lists a measurement."""
    return f"{case.name}, {pattern.name} {pattern.sparsity:.0%}"


@pytest.mark.benchmark(max_time=0.2, min_rounds=5)
@pytest.mark.parametrize(
    ("row", "case"),
    [
        pytest.param(row, case, id=f"{facts['name']}-{case.name}")
        for row, facts in enumerate(ROWS)
        for case in CASES
        if facts["op"] == case.op and facts["dtype"] == "float32"
    ],
)
def test_row(row: int, case: Case, benchmark: Any) -> None:
    """A row's result is within the rounding bound, and its time is recorded."""
    facts = ROWS[row]
    if facts["reasons"]:
        pytest.skip("; ".join(facts["reasons"]))
    pattern = TWO_OF_FOUR if facts["format"] == "nm" else RANDOM
    data = LayerData(case, pattern)
    packed = pack(case, pattern, facts["format"])
    run = NativeRun(data, THREADS, row)
    data.verify(facts["name"], run.result(packed))
    benchmark.group = label(case, pattern)
    benchmark(run.call(packed))


@pytest.mark.benchmark(max_time=0.2, min_rounds=5)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("pattern", [RANDOM, TWO_OF_FOUR], ids=lambda pattern: pattern.name)
def test_dense(pattern: Pattern, case: Case, benchmark: Any) -> None:
    """Dense PyTorch on the same problem."""
    data = LayerData(case, pattern)
    benchmark.group = label(case, pattern)
    with torch.inference_mode():
        result = benchmark(data.dense, data.x, data.weight, data.bias)
    data.verify("dense", result)
