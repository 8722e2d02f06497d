"""The Triton csr linear kernel: interpreted on the CPU, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton_csr_checks as checks
from test_triton_nm import needs_assembler, needs_gpu, needs_triton, worker
from triton_nm_checks import ACTIVATIONS, DTYPES, ONE_QUICK

from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton.csr_rows import ALIGN, SLICE_ROWS, csr_limits, csr_rows

Check = Callable[..., None]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    with worker(TRITON_INTERPRET="1") as call:
        yield call


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    cache = tmp_path_factory.mktemp("triton-cache")
    with worker(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache)) as call:
        yield call


SHAPES = [
    (0, 5, 8),
    (1, 1, 1),
    (1, 33, 261),
    (2, 8, 129),
    (3, 9, 64),
    (15, 17, 40),
    (16, 7, 130),
    (17, 26, 37),
    (40, 5, 16),
]


@pytest.mark.sampled(4)
@needs_triton
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_matches_float64(interpreted: Check, dtype: str, shape: tuple[int, int, int]) -> None:
    for density in (0.0, 0.2, 1.0):
        interpreted(checks.check_oracle, dtype, shape, density, "none", True, "cpu")
    interpreted(checks.check_integers, dtype, shape, "cpu")


@needs_triton
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_activations(interpreted: Check, dtype: str) -> None:
    for activation in ACTIVATIONS:
        for biased in (False, True):
            shape = (3, 18, 21)
            interpreted(checks.check_oracle, dtype, shape, 0.2, activation, biased, "cpu")


@needs_triton
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_cut_rows(interpreted: Check, dtype: str, tokens: int) -> None:
    interpreted(checks.check_cut_rows, dtype, tokens, "cpu")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("columns", [65536, 65537])
def test_columns_of_two_and_four_bytes(interpreted: Check, columns: int) -> None:
    interpreted(checks.check_oracle, "bfloat16", (2, 5, columns), 0.01, "none", False, "cpu")


@needs_triton
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_values_layouts_and_operator(interpreted: Check, dtype: str) -> None:
    interpreted(checks.check_nonfinite_and_zeros, dtype, "cpu")
    interpreted(checks.check_layouts, dtype, "cpu")
    interpreted(checks.check_operator, dtype, "cpu")


@needs_triton
def test_errors_and_examples(interpreted: Check) -> None:
    interpreted(checks.check_errors)
    interpreted(checks.check_examples)


@needs_assembler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "block"),
    [(80, d, b) for d in DTYPES for b in (1, 16)] + [(90, "bfloat16", b) for b in (1, 2, 4, 8, 16)],
)
def test_compiles_ahead(compiled: Check, capability: int, dtype: str, block: int) -> None:
    compiled(checks.compile_ahead, capability, dtype, block, "gelu", block != 4)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_gpu(compiled: Check, dtype: str) -> None:
    for shape in [*SHAPES, (1, 4096, 4096), (16, 512, 1024)]:
        compiled(checks.check_oracle, dtype, shape, 0.1, "none", True, "cuda")
    for activation in ACTIVATIONS:
        compiled(checks.check_oracle, dtype, (3, 18, 21), 0.2, activation, True, "cuda")
    for tokens in (1, 5):
        compiled(checks.check_cut_rows, dtype, tokens, "cuda")
    compiled(checks.check_nonfinite_and_zeros, dtype, "cuda")
    compiled(checks.check_layouts, dtype, "cuda")
    compiled(checks.check_operator, dtype, "cuda")
    compiled(checks.check_graph, dtype)


@pytest.mark.parametrize("sms", [0, 1, 4, 132])
def test_rows_and_units_cover_every_entry_once(sms: int) -> None:
    weight = checks.draw(37, 3000, 0.1)
    csr = weight.to_sparse_csr()
    made = csr_rows(csr.crow_indices(), csr.col_indices(), csr.values(), 3000, torch.float32, sms)
    rebuilt = torch.zeros_like(weight)
    pieces: dict[int, int] = {}
    for number, (slice_id, first, last, count) in enumerate(made.units.tolist()):
        pieces[slice_id] = pieces.get(slice_id, 0) + 1
        assert (count > 1) == (number < made.cut_units)
        for lane in range(slice_id * SLICE_ROWS, (slice_id + 1) * SLICE_ROWS):
            begin = ALIGN * int(made.starts[lane])
            span = range(ALIGN * first, ALIGN * min(last, int(made.lengths[lane])))
            for entry in (begin + e for e in span if made.values[begin + e] != 0):
                rebuilt[made.order[lane], int(made.columns[entry]) & 0xFFFF] += made.values[entry]
    assert torch.equal(rebuilt, weight)
    for slice_id, (first_unit, count) in enumerate(made.cuts.tolist()):
        assert pieces[slice_id] == count
        assert made.units[first_unit, 0] == slice_id
    work = (made.units[:, 2] - made.units[:, 1]).float()
    even = max(float(work.sum()) / max(2 * sms, 1), 64)
    assert work.max() <= 1.5 * even + 1, "no program has half as much again as an even share"


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    here = Problem("linear", "csr", dtype=torch.float16)
    assert "got cpu" in csr_limits(here)[-1]
    there = replace(here, device=torch.device("cuda"), dtype=torch.float64)
    assert "got float64" in csr_limits(there)[-1]
