"""The cap on instruction sets: how the benchmark begins anew, and what it takes for obedience."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import isa, run
from benchmarks.results import Results
from sparseinfer import _C

SAID = """\
MKL_VERBOSE oneMKL 2024.0 Update 2 Product build 20240605 for Intel(R) 64 architecture {mkl} \
processors, Lnx 2.60GHz lp64 gnu_thread
MKL_VERBOSE SGEMM(T,N,64,8,64,0x7ff,0x55f,64) 31.61ms CNR:OFF Dyn:1 FastMM:1 TID:0  NThr:2
onednn_verbose,v1,info,oneDNN v3.12.0 (commit 80afa71)
onednn_verbose,v1,info,cpu,isa:{onednn}
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:blk,undef,src:f32::blocked:abcd::f0
onednn_verbose,v1,primitive,exec,cpu,convolution,{convolution},forward_training,src:f32
aten: {aten}
"""
AVX2_OF_MKL = "Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled"
CAPPED = {"mkl": AVX2_OF_MKL, "onednn": "Intel AVX2", "convolution": "jit:avx2", "aten": "AVX2"}


class BegunAnewError(Exception):
    """Stands for a process that is no more."""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the process was begun anew with."""
    for name in isa.CAPS["avx2"]:
        monkeypatch.delenv(name, raising=False)
    calls: list[Any] = []

    def execve(path: str, command: list[str], environment: Mapping[str, str]) -> None:
        calls.append((path, command, environment))
        raise BegunAnewError

    monkeypatch.setattr(os, "execve", execve)
    return calls


def application() -> typer.Typer:
    app = typer.Typer()
    app.command()(run.main)
    return app


def test_the_benchmark_begins_anew_with_every_library_capped(
    begun: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--suite", "cold", "--isa", "avx2", "--quick"]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX512")
    done = CliRunner().invoke(application(), arguments)
    assert isinstance(done.exception, BegunAnewError)
    ((path, command, environment),) = begun
    assert path == sys.executable
    assert command == [sys.executable, "-m", "benchmarks.run", *arguments]
    assert isa.is_set("avx2", environment)
    assert environment.items() >= {**os.environ, **isa.CAPS["avx2"]}.items()


def test_a_capped_process_goes_on(begun: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in isa.CAPS["avx2"].items():
        monkeypatch.setenv(name, value)
    isa.restart("avx2", "benchmarks.run", [])
    assert not begun
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    with pytest.raises(BegunAnewError):
        isa.restart("avx2", "benchmarks.run", [])


def test_without_the_option_nothing_begins_anew(
    begun: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "jobs", lambda *_, **__: [])
    out = tmp_path / "out.json"
    done = CliRunner().invoke(application(), ["--suite", "cold", "--out", str(out)])
    assert done.exit_code == 0 and not begun
    assert Results.read(out).settings["isa"] is None


@pytest.mark.parametrize("name", ["avx512", "AVX2", "sse"])
def test_other_caps_are_refused(name: str, begun: list[Any]) -> None:
    done = CliRunner().invoke(application(), ["--isa", name])
    assert done.exit_code == 2 and "expected an --isa of avx2" in " ".join(done.output.split())
    assert not begun


def test_the_command_that_is_recorded_has_the_cap() -> None:
    options = run.options_of("kernels", "1", Path("out.json"), False, "avx2")
    assert options[-4:] == ["--out", "out.json", "--isa", "avx2"]


def test_what_the_libraries_say_is_recorded(
    begun: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in isa.CAPS["avx2"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(isa, "probe", lambda: SAID.format(**CAPPED))
    monkeypatch.setattr(isa, "selected_isa", lambda: "avx2")
    monkeypatch.setattr(run, "jobs", lambda *_, **__: [])
    out = tmp_path / "out.json"
    done = CliRunner().invoke(application(), ["--suite", "cold", "--isa", "avx2", "--out", out])
    assert done.exit_code == 0, done.output
    results = Results.read(out)
    assert results.settings["isa"] == {
        "sparseinfer": "avx2", "aten": "AVX2", "onednn": "Intel AVX2",
        "onednn_convolution": "jit:avx2", "mkl": AVX2_OF_MKL,
    }  # fmt: skip
    assert results.machine["environment"].items() >= isa.CAPS["avx2"].items()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sparseinfer", {"ours": "avx512"}),
        ("sparseinfer", {"ours": "scalar"}),
        ("aten", {"aten": "AVX512"}),
        ("aten", {"aten": "DEFAULT"}),
        ("onednn", {"onednn": "Intel AVX-512 with Intel DL Boost"}),
        ("onednn", {"onednn": "Intel AVX2 and Intel AVX10.1"}),
        ("onednn_convolution", {"convolution": "jit:avx512_core"}),
        ("mkl", {"mkl": "Intel(R) Advanced Vector Extensions 512 (Intel(R) AVX-512) enabled"}),
    ],
)
def test_a_library_that_does_not_obey_is_an_error(name: str, change: dict[str, str]) -> None:
    said = {"ours": "avx2", **CAPPED, **change}
    with pytest.raises(isa.CapError, match=f"expected {name} capped to avx2"):
        isa.obeyed("avx2", said["ours"], SAID.format(**said))


def test_a_library_that_says_nothing_is_an_error_but_for_mkl() -> None:
    lines = SAID.format(**CAPPED).splitlines()
    without = "\n".join(line for line in lines if "convolution" not in line)
    with pytest.raises(isa.CapError, match="expected onednn_convolution"):
        isa.obeyed("avx2", "avx2", without)
    # On AMD's processors MKL names no instruction set.
    silent = SAID.format(**{**CAPPED, "mkl": "Intel(R) Architecture"})
    assert "ignores it on AMD" in isa.obeyed("avx2", "avx2", silent)["mkl"]
    without = "\n".join(line for line in lines if "MKL" not in line)
    assert "not in this build" in isa.obeyed("avx2", "avx2", without)["mkl"]


@pytest.mark.skipif(
    not any(one["name"] == "avx2" and one["supported"] for one in _C.isas()),
    reason="this processor has no AVX2",
)
def test_the_libraries_here_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in isa.CAPS["avx2"].items():
        monkeypatch.setenv(name, value)
    said = isa.obeyed("avx2", "avx2", isa.probe())
    assert said["aten"] == "AVX2" and "AVX2" in said["onednn"]
