"""`benchmarks.gpu` without a GPU: a whole rehearsal, the budget, and that the check can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks.gpu import contest as contests
from benchmarks.gpu import correctness, decoder, layers
from benchmarks.gpu.contest import Budget, GpuCase, contest
from benchmarks.gpu.rows import MEASURED, REHEARSED, GpuResults, Timed
from benchmarks.gpu.show import intensity, roofline, table
from sparseinfer import unpack
from sparseinfer.formats import detect_pattern
from sparseinfer.kernels.registry import TRITON_ROWS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NM_ROW = next(row for row in TRITON_ROWS if row.name == "nm.linear.triton")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; it would rehearse the GPU benchmark in the interpreter",
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device; it would time one layer against cuBLAS and cuSPARSELt",
)


def _results() -> GpuResults:
    return GpuResults(
        kind=REHEARSED, date="2026-01-01", command="", commit={}, versions={}, machine={},
        settings={}, copy_gb_s=1.0,
    )  # fmt: skip


def _run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        cwd=ROOT, env=plain | environment | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


@needs_triton
def test_a_rehearsal_runs_from_end_to_end_and_is_marked_as_none(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = _run("--out", str(out), "--dry-run", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["kind"] == REHEARSED and found["kind"].startswith("NOT A MEASUREMENT")
    assert found["settings"]["dry_run"] is True and found["complete"] is True
    assert "gpu" not in found["machine"] and found["command"].endswith("--dry-run")
    assert {row["timed"] for row in found["rows"]} == {"clock"}
    checked = {check["row"] for check in found["checks"]}
    refused = {missing["case"] for missing in found["missing"] if missing["suite"] == "correctness"}
    assert checked | refused == {row.name for row in TRITON_ROWS} and checked
    assert all(check["passed"] for check in found["checks"])
    types_of = {check["dtype"] for check in found["checks"] if check["row"] == "nm.linear.triton"}
    assert types_of == {"float32", "float16", "bfloat16"}
    suites = {row["suite"] for row in found["rows"]}
    assert suites == {"layers", "decoder", "convolutions"}
    decoders = [row for row in found["rows"] if row["suite"] == "decoder"]
    assert [row["contender"] for row in decoders] == ["dense", "nm"]
    assert all(row["tokens_s"] > 0 for row in decoders)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in out.read_text(), "a result holds no path of the machine"


def test_it_refuses_to_measure_without_a_gpu_and_to_rehearse_uninterpreted(tmp_path: Path) -> None:
    done = _run("--out", str(tmp_path / "x.json"), "--dry-run")
    assert done.returncode == 2 and "TRITON_INTERPRET=1" in done.stderr
    if not torch.cuda.is_available():
        done = _run("--out", str(tmp_path / "x.json"))
        assert done.returncode == 2 and "expected a CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())


# ---- the budget ----------------------------------------------------------------------------------


def test_a_case_begins_only_where_the_longest_so_far_fits() -> None:
    now = [0.0]
    budget = Budget(10.0, lambda: now[0])

    def spend(seconds: float) -> bool:
        return budget.run(lambda: now.__setitem__(0, now[0] + seconds))

    assert [spend(4), spend(1), spend(1), spend(1)] == [True, True, True, False]
    assert budget.left == 4.0
    part = Budget(10.0, lambda: now[0]).part(0.25)
    assert part.left == pytest.approx(2.5)


def test_cases_without_time_are_named() -> None:
    results = _results()
    layers.run(CPU, results, Budget(-1.0), tiny=True)
    cases = len(layers.TINY_TOKENS) * len(layers.SPARSITIES) * len(layers.TINY_SHAPES)
    assert len(results.missing) == cases and not results.rows
    assert {missing.why for missing in results.missing} == {"no time left"}
    assert results.missing[0].case == "64x64 2:4 50% N=1"


def test_the_cases_are_those_promised() -> None:
    assert sorted(layers.TOKENS) == [1, 2, 4, 8, 16, 64, 256, 1024, 4096]
    assert layers.SHAPES == ((4096, 4096), (11008, 4096), (14336, 4096), (28672, 8192))
    assert layers.TOKENS[0] == 1, "decode is the last to be left out"


# ---- timing --------------------------------------------------------------------------------------


def test_contenders_take_turns_and_failures_are_recorded() -> None:
    seconds = {"dense": 2e-3, "ours": 1e-3}
    order: list[str] = []

    def timer(turns: Any, repeats: int) -> float:
        order.append(turns.name)
        return seconds[turns.name]

    case = GpuCase("layers", "one", 8, 8, 1, "2:4", 0.5, io_bytes=100)
    results = _results()
    results.copy_gb_s = 1e-3

    def broken() -> Any:
        raise ValueError("no such thing\nat all")

    def works() -> Any:
        return (lambda: None), 900

    sides = [("dense", works), ("broken", broken), ("ours", works)]
    contest(case, sides, CPU, results, tokens=1, timers=[timer])
    assert order[-4:] == ["dense", "ours", "ours", "dense"]
    dense, ours = results.rows
    assert (dense.speedup, ours.speedup, ours.ms, ours.tokens_s) == (1.0, 2.0, 1.0, 1000.0)
    assert ours.gb_s == pytest.approx(1000 / 1e-3 / 1e9) and ours.copy_share == pytest.approx(1.0)
    assert ours.low_ms <= ours.ms <= ours.high_ms
    assert results.missing[0].contender == "broken"
    assert results.missing[0].why == "ValueError: no such thing"


def test_without_the_dense_side_there_is_no_row() -> None:
    def broken() -> Any:
        raise RuntimeError("out of memory")

    results = _results()
    contest(GpuCase("layers", "one", 8, 8, 1, "2:4", 0.5, 0), [("dense", broken)], CPU, results)
    assert not results.rows and len(results.missing) == 1


# ---- correctness ---------------------------------------------------------------------------------


def test_the_check_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("wrong_row")

    def exact(x: Any, packed: Any, bias: Any, rows: int, activation: str, *, meta: Any) -> Any:
        return F.linear(x.double(), unpack(packed).double(), bias.double()).to(x.dtype)

    def off(*arguments: Any, **options: Any) -> Any:
        return exact(*arguments, **options) + 0.25

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("illegal memory access\nsomewhere")

    for function in (exact, off, broken):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "wrong_row", module)
    row = replace(NM_ROW, refuses=lambda problem: [], least=0, most=None)
    outcomes = {
        name: list(correctness.check(replace(row, kernel=f"wrong_row:{name}"), CPU, tiny=True))
        for name in ("exact", "off", "broken")
    }
    assert all(check.passed for check in outcomes["exact"])
    assert not any(check.passed for check in outcomes["off"]) and outcomes["off"][0].excess > 0
    assert {check.error for check in outcomes["broken"]} == {"illegal memory access"}
    assert not any(check.passed for check in outcomes["broken"])


@pytest.mark.parametrize(("least", "most"), [(0, None), (0, 64), (256, None)])
def test_a_row_is_checked_at_both_sides_of_every_edge(least: int, most: int | None) -> None:
    tokens = correctness._tokens(replace(NM_ROW, least=least, most=most), tiny=False)
    assert tokens == [n for n in (1, 2, 16, 17, 64, 65, 255, 256) if least <= n <= (most or n)]


@pytest.mark.parametrize("pattern", ["2:4", "block32", "random"])
def test_weights_have_the_pattern_they_are_named_for(pattern: str) -> None:
    torch.manual_seed(0)
    weight = layers.pruned(torch.randn(256, 256), pattern, 0.9)
    named = {"2:4": "2:4", "block32": "block 32x32", "random": "unstructured"}
    assert str(detect_pattern(weight)).startswith(named[pattern])
    with pytest.raises(ValueError, match="expected a pattern of 2:4"):
        layers.pruned(weight, "3:7", 0.5)


def test_the_sparse_decoder_computes_what_the_dense_one_does() -> None:
    dense = decoder.build(32, 64, 4, layers=2, past=8)
    sparse, x = decoder.sparse_copy(dense), torch.randn(1, 1, 32)
    assert sum(type(module).__name__ == "SparseLinear" for module in sparse.modules()) == 14
    with torch.no_grad():
        assert torch.allclose(sparse(x), dense(x), atol=1e-5)


# ---- what is shown -------------------------------------------------------------------------------


def test_the_table_and_the_roofline_tell_a_rehearsal(tmp_path: Path) -> None:
    results = _results()
    row = Timed(
        "layers", "one", 8, 8, 4, "2:4", 0.5, "dense", "clock", 1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 256
    )
    results.rows += [row, replace(row, contender="nm", ms=0.5, bytes=128)]
    assert intensity(row) == 2.0 and intensity(results.rows[1]) == 4.0
    assert "NOT A MEASUREMENT" in str(table(results).title)
    roofline(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert not MEASURED.startswith("NOT")


@needs_gpu
def test_one_layer_on_a_gpu() -> None:
    results = _results()
    device = torch.device("cuda")
    results.copy_gb_s = contests.copy_bandwidth(device)
    weight = layers.Weight(
        layers.pruned(torch.randn(1024, 1024, device=device), "2:4", 0.5).bfloat16(), "2:4"
    )
    x = torch.randn(8, 1024, device=device, dtype=torch.bfloat16)
    case = GpuCase("layers", "one", 1024, 1024, 8, "2:4", 0.5, 0)
    contest(case, layers.contenders(weight, x), device, results)
    assert {"dense", "nm"} <= {row.contender for row in results.rows}
    assert {row.timed for row in results.rows if row.contender != "cuSPARSELt"} == {"graph"}
