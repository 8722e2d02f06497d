"""The tuning cache: what is kept where, what is trusted, and that it saves measuring."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import nn

from sparseinfer import _C, convert_to_sparse, report
from sparseinfer.convert import guarantee
from sparseinfer.convert.occupancy import bucket
from sparseinfer.timing import tuning
from sparseinfer.timing.conditions import conditions
from sparseinfer.timing.machine import cache_sizes
from sparseinfer.timing.measure import Comparison
from sparseinfer.timing.tuning import MOST_BYTES, Cache, Tuner, cache_folder, describe_machine

MACHINE = {"cpu": "one", "threads": 2}
PROBLEM = {"label": "linear 8x8 panel", "layer": "linear", "input": [1, 8], "density": 0.1}
CONDITIONS = {"flush_denormal": False, "autocast": {"cpu": [False, "torch.bfloat16"]}}
FOUND = Comparison(2.0, 1.0, 2.0, 1.75, 2.25, 40)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "kept")


def _model(density: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
    for layer in (model[0], model[2]):
        layer.weight.data = sparse_weight(layer.weight.shape, density)
    return model


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The thresholds of all comparisons that are measured, in place of measuring."""
    thresholds: list[float] = []

    def compare(dense: Callable[[], Any], sparse: Callable[[], Any], **options: Any) -> Comparison:
        for call, enter in zip((dense, sparse), options["ready"], strict=True):
            enter()
            call()
        thresholds.append(options["threshold"])
        return FOUND

    monkeypatch.setattr(tuning, "compare", compare)
    monkeypatch.setattr(guarantee.Guarantee, "dense_ms", lambda self: 4.0)  # of two layers
    return thresholds


# ---- where ---------------------------------------------------------------------------------------


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEINFER_CACHE", "off")
    assert cache_folder() is None and cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("SPARSEINFER_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named" and cache_folder(False) is None
    monkeypatch.delenv("SPARSEINFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sparseinfer"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sparseinfer"


def test_nothing_is_kept_where_it_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[float]
) -> None:
    monkeypatch.setenv("SPARSEINFER_CACHE", str(tmp_path / "kept"))
    convert_to_sparse(_model(), example_inputs=torch.randn(4, 256), cache=False)
    assert measured and not (tmp_path / "kept").exists()
    convert_to_sparse(_model(), example_inputs=torch.randn(4, 256))
    assert any((tmp_path / "kept").iterdir())


# ---- what ----------------------------------------------------------------------------------------


def test_it_gives_back_what_it_was_given(cache: Cache) -> None:
    assert cache.read(MACHINE, PROBLEM, CONDITIONS) is None
    cache.write(MACHINE, PROBLEM, CONDITIONS, FOUND)
    assert cache.read(MACHINE, PROBLEM, CONDITIONS) == FOUND
    better = replace(FOUND, high=3.0, early=True)
    cache.write(MACHINE, PROBLEM, CONDITIONS, better)
    assert cache.read(MACHINE, PROBLEM, CONDITIONS) == better
    (path,) = cache.folder.iterdir()
    assert path.name.startswith("linear-8x8-panel-") and path == cache.path(
        MACHINE, PROBLEM, CONDITIONS
    )


def test_files_are_json_to_be_read(cache: Cache) -> None:
    cache.write(MACHINE, PROBLEM, CONDITIONS, FOUND)
    entry = json.loads(cache.path(MACHINE, PROBLEM, CONDITIONS).read_text())
    assert entry["machine"] == MACHINE and entry["problem"] == PROBLEM
    assert entry["comparison"] == asdict(FOUND)


@pytest.mark.parametrize(("machine", "problem"), [
    ({**MACHINE, "threads": 1}, PROBLEM), ({**MACHINE, "cpu": "two"}, PROBLEM),
    (MACHINE, {**PROBLEM, "density": 0.2}), (MACHINE, {**PROBLEM, "input": [2, 8]}),
])  # fmt: skip
def test_another_machine_or_problem_is_another_entry(
    cache: Cache, machine: dict[str, Any], problem: dict[str, Any]
) -> None:
    cache.write(MACHINE, PROBLEM, CONDITIONS, FOUND)
    assert cache.read(machine, problem, CONDITIONS) is None
    shutil.copy(cache.path(MACHINE, PROBLEM, CONDITIONS), cache.path(machine, problem, CONDITIONS))
    assert cache.read(machine, problem, CONDITIONS) is None  # renamed to pass for it


def test_what_an_entry_holds_for() -> None:
    found = describe_machine()
    assert found["kernels"] == _C.source_hash() and len(found["kernels"]) == 16
    assert found["torch"] == torch.__version__ and found["caches"] == cache_sizes()
    assert {"cpu", "features", "isa", "sparseinfer", "torch_isa"} <= set(found)
    assert Tuner(3, torch.device("cpu"), 1.0).machine == {**found, "threads": 3}


def test_the_hash_of_the_kernels_follows_sources_and_compiler(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "cmake" / "source_hash.cmake"
    cmake = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    assert cmake is not None
    (tmp_path / "csrc" / "deep").mkdir(parents=True)
    (tmp_path / "CMakeLists.txt").write_text("")
    sources = [tmp_path / "csrc" / name for name in ("a.cc", "deep/b.h", "rows.inc")]
    for source in sources:
        source.write_text("1")

    def hashed(compiler: str = "one") -> str:
        out = tmp_path / "out.cc"
        defined = (f"-DROOT={tmp_path}", f"-DCOMPILED_WITH={compiler}", f"-DOUT={out}")
        subprocess.run([cmake, *defined, "-P", str(script)], check=True)
        return out.read_text()

    first = hashed()
    assert re.search('source_hash = "[0-9a-f]{16}";', first)
    (tmp_path / "csrc" / "a_test.cc").write_text("tests decide nothing")
    assert hashed() == first != hashed("two")
    seen = {first}
    for source in (*sources, tmp_path / "CMakeLists.txt"):
        source.write_text("2")
        seen.add(hashed())
    assert len(seen) == 5


def test_cache_sizes(tmp_path: Path) -> None:
    for index, level in (("index0", "1"), ("index1", "2")):
        (tmp_path / index).mkdir()
        (tmp_path / index / "level").write_text(level + "\n")
        (tmp_path / index / "type").write_text("Unified\n")
    (tmp_path / "index1" / "size").write_text("1024K\n")
    assert cache_sizes(tmp_path) == ["L2 Unified 1024K"]


def test_densities_near_each_other_share() -> None:
    assert bucket(0.1) == bucket(0.105) != bucket(0.11)
    assert bucket(0.01) == bucket(0.0108) != bucket(0.0097)
    assert bucket(0.5) == bucket(0.508) != bucket(0.52) and bucket(1.0) == 1.0
    assert bucket(0.0) == bucket(1e-5) < bucket(1e-3)
    steps = [bucket(i / 1000) for i in range(1001)]
    assert steps == sorted(steps) and all(
        abs(step - i / 1000) <= max(0.0101, 0.06 * i / 1000) for i, step in enumerate(steps)
    )


# ---- what is trusted -----------------------------------------------------------------------------


def _entry(**changes: Any) -> str:
    comparison = {**asdict(FOUND), **changes}
    return json.dumps(
        {
            "sparseinfer": 2,
            "machine": MACHINE,
            "conditions": CONDITIONS,
            "problem": PROBLEM,
            "comparison": comparison,
        }
    )


HOSTILE = {
    "empty": "",
    "cut": _entry()[:-20],
    "no object": "[1, 2]",
    "another version": _entry().replace('"sparseinfer": 2', '"sparseinfer": 1'),
    "no comparison": json.dumps(
        {"sparseinfer": 2, "machine": MACHINE, "conditions": CONDITIONS, "problem": PROBLEM}
    ),
    "nan": _entry(speedup=float("nan")),
    "infinite": _entry(high=float("inf")),
    "negative": _entry(sparse_ms=-1.0),
    "zero": _entry(dense_ms=0),
    "text": _entry(dense_ms="2.0"),
    "true for a number": _entry(low=True),
    "bounds crossed": _entry(low=2.2, high=2.1),
    "no rounds": _entry(rounds=0),
    "half a round": _entry(rounds=2.5),
    "early is 1": _entry(early=1),
    "in doubt": _entry(doubt="it was interrupted"),
    "more than is known": _entry(command="rm"),
    "too deep": "[" * 50000,
    "too long": _entry() + " " * MOST_BYTES,
    "huge number": _entry().replace("2.25", "9" * 5000),
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_or_hostile_file_is_ignored_and_written_anew(
    cache: Cache, content: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache.folder.mkdir()
    path = cache.path(MACHINE, PROBLEM, CONDITIONS)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert cache.read(MACHINE, PROBLEM, CONDITIONS) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.name == "sparseinfer.timing.tuning"
    assert str(path) in record.message and "written anew" in record.message
    cache.write(MACHINE, PROBLEM, CONDITIONS, FOUND)
    assert cache.read(MACHINE, PROBLEM, CONDITIONS) == FOUND


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_ignored(
    cache: Cache, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache.folder.mkdir()
    make(cache.path(MACHINE, PROBLEM, CONDITIONS))
    assert cache.read(MACHINE, PROBLEM, CONDITIONS) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_folder_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, measured: list[float]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    sparse = convert_to_sparse(_model(), example_inputs=torch.randn(4, 256), cache=in_the_way)
    assert report(sparse).totals["sparse_layers"] == 2
    warnings = [record for record in caplog.records if "keeps no timings" in record.message]
    assert len(warnings) == 1 and in_the_way.read_text() == "mine"


def _write_many(folder: Path, writer: int) -> None:
    cache = Cache(folder)
    for turn in range(40):
        for shared in range(5):
            found = replace(FOUND, rounds=1 + writer * 40 + turn)
            cache.write(MACHINE, {**PROBLEM, "number": shared}, CONDITIONS, found)
        cache.write(MACHINE, {**PROBLEM, "number": f"{writer} {turn}"}, CONDITIONS, FOUND)


def test_many_processes_write_at_once(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(cache.folder, i)) for i in range(4)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        for shared in range(5):
            found = cache.read(MACHINE, {**PROBLEM, "number": shared}, CONDITIONS)
            reads += found is not None
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4 and reads > 0
    assert not caplog.records  # no reader met half a file
    assert len(list(cache.folder.iterdir())) == 5 + 4 * 40  # nothing lost, nothing left over
    for writer in range(4):
        for turn in range(40):
            assert (
                cache.read(MACHINE, {**PROBLEM, "number": f"{writer} {turn}"}, CONDITIONS) == FOUND
            )


# ---- what it saves -------------------------------------------------------------------------------


def test_a_second_conversion_measures_nothing(tmp_path: Path, measured: list[float]) -> None:
    x = torch.randn(4, 256)
    first = report(convert_to_sparse(_model(), example_inputs=x, cache=tmp_path))
    assert len(measured) == first.measured == 3 and first.kept == 0
    measured.clear()
    second = report(convert_to_sparse(_model(), example_inputs=x, cache=tmp_path))
    assert not measured and (second.measured, second.kept) == (0, 3)
    assert [layer.format for layer in second.layers] == ["panel", "panel"]
    assert (second.layers, second.whole) == (first.layers, first.whole)


def test_another_min_speedup_is_decided_from_what_was_kept(
    tmp_path: Path, measured: list[float]
) -> None:
    x = torch.randn(4, 256)
    convert_to_sparse(_model(), example_inputs=x, cache=tmp_path)
    measured.clear()
    strict = convert_to_sparse(_model(), example_inputs=x, cache=tmp_path, min_speedup=1.9)
    assert not measured and report(strict).totals["sparse_layers"] == 0
    loose = convert_to_sparse(_model(), example_inputs=x, cache=tmp_path, min_speedup=1.7)
    assert not measured and report(loose).totals["sparse_layers"] == 2


def test_one_that_ended_early_is_measured_anew_only_where_it_cannot_decide(cache: Cache) -> None:
    tuner = Tuner(2, torch.device("cpu"), 1.05, cache=cache)
    cache.write(tuner.machine, PROBLEM, conditions(), replace(FOUND, early=True))
    assert tuner.recall(PROBLEM, threshold=2.0) is None and tuner.kept == 0
    assert tuner.recall(PROBLEM) == replace(FOUND, early=True) and tuner.kept == 1


def test_what_a_busy_machine_could_not_tell_is_not_kept(cache: Cache) -> None:
    tuner = Tuner(2, torch.device("cpu"), 1.05, cache=cache)
    vague = Comparison(2.0, 1.0, 2.0, 0.9, 5.0, 100)
    tuner.keep({**PROBLEM, "vague": True}, vague)
    tuner.flush()
    assert not cache.folder.exists() and tuner.recall({**PROBLEM, "vague": True}) == vague
    narrow = Comparison(2.0, 1.9, 1.05, 1.03, 1.07, 100)
    tuner.keep({**PROBLEM, "narrow": True}, narrow)
    tuner.keep({**PROBLEM, "decided": True}, FOUND)
    tuner.keep({**PROBLEM, "doubted": True}, replace(FOUND, doubt="it was interrupted"))
    tuner.flush()
    assert len(list(cache.folder.iterdir())) == 2


@pytest.mark.parametrize("change", ["threads", "shape", "strides", "density", "bias"])
def test_what_makes_a_difference_is_measured_anew(
    tmp_path: Path, measured: list[float], change: str
) -> None:
    def convert(changed: str) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64, bias=changed != "bias"))
        model[0].weight.data = sparse_weight((64, 64), 0.5 if changed == "density" else 0.1)
        x = torch.randn(5 if changed == "shape" else 4, 64)
        if changed == "strides":
            x = torch.randn(64, 4).t()
        convert_to_sparse(
            model, example_inputs=x, cache=tmp_path, threads=1 if changed == "threads" else 2
        )

    convert("nothing")
    measured.clear()
    convert("nothing")
    assert not measured
    convert(change)
    assert len(measured) == 2  # the layer and the whole model


def test_a_folder_can_be_shipped(tmp_path: Path, measured: list[float]) -> None:
    x = torch.randn(4, 256)
    convert_to_sparse(_model(), example_inputs=x, cache=tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    measured.clear()
    convert_to_sparse(_model(), example_inputs=x, cache=str(tmp_path / "there"))
    assert not measured


@pytest.mark.parametrize(("lie", "believed"), [(10.0, True), (860.0, False), (0.01, False)])
def test_a_kept_lie_about_a_layer_does_not_make_the_model_slower(
    tmp_path: Path, lie: float, believed: bool
) -> None:
    """Measuring the model tells a small lie; one that no zeros account for is measured anew."""
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data = sparse_weight((8, 8), 0.5)
    x = torch.randn(1, 8)
    convert_to_sparse(model, example_inputs=x, cache=tmp_path, verify=False)
    (path,) = tmp_path.glob("linear-*.json")
    entry = json.loads(path.read_text())
    entry["comparison"].update(speedup=lie, low=0.9 * lie, high=1.1 * lie)
    path.write_text(json.dumps(entry))
    found = report(convert_to_sparse(model, example_inputs=x, cache=tmp_path))
    assert (found.layers[0].speedup == pytest.approx(lie)) is believed
    assert not found.layers[0].is_sparse
    assert found.whole is not None and found.whole.reverted == (["0"] if believed else [])


def test_the_log_says_where_a_decision_came_from(
    tmp_path: Path, measured: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="sparseinfer.timing.tuning"):
        for source in ("measured", "kept"):
            caplog.clear()
            convert_to_sparse(_model(), example_inputs=torch.randn(4, 256), cache=tmp_path)
            assert all(message.startswith(source) for message in caplog.messages)
            assert len(caplog.messages) == 3
