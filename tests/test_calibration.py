"""The cost model's parameters: their fit, their file, and what is refused of a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import calibrate
from benchmarks.cases import ConvCase
from benchmarks.fit import Calls, Cell, fit, held_out, judge, modelled, solve
from sparseinfer.layers.kinds import KINDS, kind_named
from sparseinfer.timing import builtin_rates, calibration, cost, rates
from sparseinfer.timing.rates import CLASSES, CONTENDERS, CONVOLUTIONS, Model, class_of, parse

BUILTIN = parse(builtin_rates.MODEL)
CALLS: Calls = {count: own.calls for count, own in BUILTIN.threads.items()}


def cells_of(points: Sequence[calibrate.Point], threads: Sequence[int] = (1, 2)) -> list[Cell]:
    """The grid's cells, as fast as the built-in model says."""
    cells = []
    for point, count in itertools.product(points, threads):
        case = point.case
        cell = Cell(
            case.name, point.name, case.m, case.k, case.n, 1 - point.pattern.sparsity, count, {}
        )
        names = ("dense", *point.formats)
        seconds = {name: modelled(BUILTIN, cell, name) for name in names}
        cells.append(dataclasses.replace(cell, seconds=seconds))
    return cells


# ---- the model


def test_every_number_of_tokens_has_a_class_of_its_own() -> None:
    for n in range(1, 600):
        (name,) = class_of("linear", 100, 100, n, 32e6)
        assert name in CLASSES and int(name.split()[1]) <= n
    assert class_of("linear", 4096, 4096, 4, 32e6) == ("linear 2 memory",)
    assert class_of("linear", 4096, 4096, 128, 32e6) == ("linear 33",)
    assert class_of("linear", 8, 8, 0, 32e6) == ("linear 1",)


def test_every_kind_of_layer_has_its_classes_and_an_estimate() -> None:
    for kind in (kind for kind in KINDS if kind.assumed_n):
        names = class_of(kind.name, 256, 512, 1, 32e6)
        assert names == (("linear 1",) if kind.op == "linear" else CONVOLUTIONS)
        worst = kind.worst_estimate(256, 512, 0.1, 2)
        assert worst.N in kind.assumed_n
        assert 0 < worst.dense_call_ms < worst.dense_ms


def test_a_recurrence_has_to_gain_on_one_thread_too() -> None:
    recurrent = [kind for kind in KINDS if kind.steps]
    for kind, density in itertools.product(recurrent, (0.05, 0.5, 1.0)):
        speedups = [kind.worst_estimate(2048, 1024, density, n).speedup for n in (1, 2, 4)]
        assert speedups == sorted(speedups, reverse=True)


def test_a_convolution_of_unknown_geometry_gets_the_least_favourable_estimate() -> None:
    for kind, threads in itertools.product(("conv1d", "conv2d"), (1, 2, 8)):
        own = [cost.estimate(64, 576, 196, 0.2, threads, kind=name) for name in CONVOLUTIONS]
        worst = cost.estimate(64, 576, 196, 0.2, threads, kind=kind)
        assert worst == min(own, key=lambda guess: guess.speedup)


def test_only_a_gain_beyond_the_error_of_the_model_counts() -> None:
    worst = kind_named("linear").worst_estimate(768, 768, 0.1)
    assert worst.N == 1
    at_one = cost.estimate(768, 768, 1, 0.1)
    assert worst.dense_ms == at_one.dense_ms
    worked, certain = (guess.sparse_ms - guess.sparse_call_ms for guess in (at_one, worst))
    assert certain == pytest.approx(worked * (1 + BUILTIN.error))


@pytest.mark.parametrize("format_name", ["panel", "csr", "nm"])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_fewer_weights_are_never_slower(kind: str, format_name: str) -> None:
    for n, threads in itertools.product((1, 3, 8, 16, 32, 200), (1, 2)):
        gains = [
            cost.estimate(512, 512, n, density / 20, threads, format_name, kind).speedup
            for density in range(21)
        ]
        assert gains == sorted(gains, reverse=True)


def test_between_and_beyond_the_measured_threads() -> None:
    model = Model(32e6, {1: BUILTIN.threads[1], 8: BUILTIN.threads[2]})

    def at(threads: int) -> cost.Estimate:
        return cost.predict(model, 768, 768, 128, 0.1, threads, "panel", "linear")

    one, four, eight, sixteen = (at(threads) for threads in (1, 4, 8, 16))
    assert one.dense_ms > four.dense_ms > eight.dense_ms > sixteen.dense_ms
    assert one.sparse_ms > four.sparse_ms > eight.sparse_ms > sixteen.sparse_ms
    # The call takes as long on any number of threads, so that the gain does not grow.
    assert sixteen.speedup < eight.speedup
    assert sixteen.dense_call_ms == eight.dense_call_ms


def test_short_rows_never_pay() -> None:
    assert cost.estimate(4096, 9, 3136, 0.1, kind="conv kxk").speedup < 1


# ---- the fit


def test_solve_finds_the_nonnegative_least_squares() -> None:
    generator = torch.Generator().manual_seed(3)
    parts = torch.rand(20, 3, generator=generator, dtype=torch.float64).numpy()
    for wanted in ([1.0, 2.0, 3.0], [0.0, 5.0, 1.0], [0.0, 0.0, 4.0]):
        assert solve(parts, parts @ wanted) == pytest.approx(wanted, abs=1e-9)
    # Without the bound the first unknown would be negative.
    values = parts @ [-1.0, 2.0, 1.0]
    found = solve(parts, values)
    assert (found >= 0).all()
    for step in torch.eye(3, dtype=torch.float64).numpy() * 1e-4:
        near = sum((parts @ (found + step) - values) ** 2)
        assert near >= sum((parts @ found - values) ** 2)


@pytest.mark.parametrize("quick", [False, True])
def test_the_grid_tells_the_parameters(quick: bool) -> None:
    """Times that follow the model are explained, those not fitted to as well, on either grid."""
    cells = cells_of(list(calibrate.points(quick=quick)))
    model = fit(cells, CALLS, 32e6)
    quality = judge((model, cell) for cell in cells)
    assert max(quality.errors) < 1e-2
    assert quality.near == 1
    unseen = held_out(cells, CALLS, 32e6)
    assert len(unseen.errors) == len(quality.errors)
    assert unseen.near > 0.98 and unseen.summary()["error_of_90%"] < 0.01


def test_the_full_grid_finds_the_parameters_themselves() -> None:
    cells = cells_of(list(calibrate.points()))
    found = fit(cells, CALLS, 32e6).threads[1].work["linear 33"]["panel"]
    assert found == pytest.approx(BUILTIN.threads[1].work["linear 33"]["panel"], rel=0.02, abs=1.0)


def test_a_part_of_the_grid_is_refused() -> None:
    cells = [cell for cell in cells_of(list(calibrate.points())) if cell.name != "conv 1x1"]
    with pytest.raises(ValueError, match="expected dense measured on conv 1x1 with 1 threads"):
        fit(cells, CALLS, 32e6)


def test_regret_is_the_time_of_the_models_choice_over_the_best() -> None:
    cell = Cell("a", "linear 33", 768, 768, 128, 0.1, 1, {"dense": 1e-4, "panel": 5e-4})
    quality = judge([(BUILTIN, cell)])
    assert modelled(BUILTIN, cell, "panel") < modelled(BUILTIN, cell, "dense")
    assert quality.regrets == (pytest.approx(5.0),)
    assert quality.near == 0 and len(quality.errors) == 2
    assert quality.errors[0] == abs(math.log(modelled(BUILTIN, cell, "dense") / 1e-4))


def test_the_grid_has_what_the_classes_stand_for() -> None:
    for point in calibrate.points():
        case = point.case
        if isinstance(case, ConvCase):
            strided = point.name == "conv strided"
            assert strided == (case.stride > 1)
            assert strided or (point.name == "conv 1x1") == (case.kernel == 1)
        else:
            assert class_of("linear", case.m, case.k, case.n, 32e6) == (point.name,)
            assert (point.copies > 1) == point.name.endswith("memory")


# ---- the command


def test_layers_that_are_timed_compute_the_same() -> None:
    for kind, case in (
        ("linear 1", calibrate.LinearCase(8, 16, 3)),
        ("conv strided", ConvCase(4, 8, 9, 3, 2)),
    ):
        for pattern in (calibrate.Pattern(0.5), calibrate.Pattern.n_m(2, 4)):
            point = calibrate.Point(kind, case, pattern)
            data = calibrate.LayerData(case, pattern)
            for name in ("dense", *point.formats):
                (layer,) = calibrate.layers_of(data, name, 1)
                data.verify(name, layer(data.x))


def test_cold_layers_outgrow_any_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "COLD_BYTES", 2**16)
    point = calibrate.Point(
        "linear 1 memory", calibrate.LinearCase(64, 64, 1), calibrate.Pattern(0.9)
    )
    data = calibrate.LayerData(point.case, point.pattern)
    for name, tensor in (("dense", "weight"), ("panel", "packed")):
        layers = calibrate.layers_of(data, name, point.copies)
        tensors = [layer.state_dict()[tensor] for layer in layers]
        assert sum(one.nbytes for one in tensors) > 2**16
        assert len({one.data_ptr() for one in tensors}) == len(tensors)


def test_a_point_is_timed_at_every_number_of_threads() -> None:
    point = calibrate.Point("linear 1", calibrate.LinearCase(8, 16, 1), calibrate.Pattern(0.5))
    plan = dataclasses.replace(calibrate.QUICK_PLAN, sample=1e-6)
    before = torch.get_num_threads()
    try:
        cells = calibrate.time_point(point, (1, 2), plan)
        calls = calibrate.time_calls((1,), plan)
    finally:
        torch.set_num_threads(before)
    assert [cell.threads for cell in cells] == [1, 2]
    for cell in cells:
        assert set(cell.seconds) == {"dense", "panel", "csr"}
        assert min(cell.seconds.values()) > 0 and cell.density == 0.5
    assert set(calls[1]) == {"linear", "conv"}


def test_the_command_writes_what_the_package_then_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEINFER_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "time_calls", lambda *_: CALLS)
    monkeypatch.setattr(
        calibrate, "time_point", lambda point, threads, _: cells_of([point], threads)
    )
    application = calibrate.typer.Typer()
    application.command()(calibrate.main)
    table = tmp_path / "table.py"
    done = CliRunner().invoke(application, ["--quick", "--threads", "1,2", "--as-python", table])
    assert done.exit_code == 0, done.output
    assert "choices within 5%" in done.output and "100.0%" in done.output
    written = calibration.load(calibration.default_path())
    assert written is not None and written.threads.keys() == {1, 2}
    assert cost.estimate(768, 768, 128, 0.1) == cost.predict(
        written, 768, 768, 128, 0.1, 1, "panel", "linear"
    )
    # The literals are the same model.
    space: dict[str, Any] = {}
    exec(table.read_text(), space)
    assert parse(space["MODEL"]) == written


def test_the_command_needs_a_place_to_write() -> None:
    application = calibrate.typer.Typer()
    application.command()(calibrate.main)
    done = CliRunner().invoke(application, ["--quick"])
    assert done.exit_code == 2 and "SPARSEINFER_CACHE is off" in done.output


# ---- the file


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A calibration of this machine."""
    path = tmp_path / "calibration.json"
    calibration.save(path, BUILTIN, {})
    return path


def ignored(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Why the file is ignored, which is logged once."""
    with caplog.at_level(logging.WARNING, "sparseinfer.timing.calibration"):
        assert calibration.load(path) is None
        assert calibration.load(path) is None
    (record,) = caplog.records
    return record.getMessage()


def test_a_file_is_read_as_it_was_written(written: Path) -> None:
    assert calibration.load(written) == BUILTIN
    assert [file.name for file in written.parent.iterdir()] == [written.name]


def test_a_calibration_of_another_machine_is_ignored(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = json.loads(written.read_text())
    entry["machine"]["cpu"] += " II"
    written.write_text(json.dumps(entry))
    assert "another processor" in ignored(written, caplog)


def test_no_file_is_no_calibration_and_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert calibration.load(None) is None
    assert calibration.load(tmp_path / "none.json") is None
    assert not caplog.records


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b"null", b"\xff\xfe", b'{"calibration": 2}', b'{"calibration": 1}',
        b"[" * 50_000, b'{"calibration": 1, "machine": ' + b"1" * 60_000 + b"}", b" " * 100_000,
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_other_files_are_ignored(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    assert "the built-in cost model decides" in ignored(path, caplog)


def test_what_is_no_file_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "expected a file" in ignored(pipe, caplog)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and dicts."""
    if not isinstance(data, (dict, list)):
        return [path]
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


GOOD = BUILTIN.as_json()
PLACES = places({"all": GOOD})[1:]


@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_in_a_model_it_is_plausible_or_refused(place: Any, value: Any) -> None:
    forged = json.loads(json.dumps({"all": GOOD}))
    inner = forged
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        model = parse(forged["all"])
    except ValueError:
        return
    guess = cost.predict(model, 100, 100, 3, 0.5, 2, "panel", "linear")
    assert 0 < guess.speedup < math.inf


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "1", None, 10**400, 1e13])
def test_numbers_out_of_range_are_refused(value: Any) -> None:
    forged = json.loads(json.dumps(GOOD))
    forged["threads"]["1"]["work"]["linear 1"]["panel"][0] = value
    with pytest.raises(ValueError, match="expected numbers of 0 to 1e"):
        parse(forged)


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "01", "1" * 9, "x", "\u0661"])
def test_numbers_of_threads_are_refused(count: str) -> None:
    forged = json.loads(json.dumps(GOOD))
    forged["threads"][count] = forged["threads"]["1"]
    with pytest.raises(ValueError, match="threads"):
        parse(forged)


def test_calls_take_time() -> None:
    forged = json.loads(json.dumps(GOOD))
    forged["threads"]["1"]["calls"]["conv"] = [1.0, 0.0]
    with pytest.raises(ValueError, match="calls that take time"):
        parse(forged)


def test_the_model_is_parsed_as_it_is_told() -> None:
    assert parse(json.loads(json.dumps(BUILTIN.as_json()))) == BUILTIN
    assert set(BUILTIN.threads[1].work) == set(CLASSES)
    assert all(set(own) == set(CONTENDERS) for own in BUILTIN.threads[1].work.values())
    assert all(rates.PARTS[name] == len(parts) for name, parts in
               BUILTIN.threads[1].work["linear 1"].items())  # fmt: skip
