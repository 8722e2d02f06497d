"""The guard of sizes: what it reads from tables of sections, and compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import sizes
from benchmarks.instructions import ROOT
from benchmarks.sizes import PROCESSORS, PROGRAMS

TABLE = """
/x/core  :
section                size     addr
.interp                  27      624
.text                  1000     1024
.rodata                 200     2048
.rodata.cst16            16     2248
.eh_frame               300     2300
.data.rel.ro             40     4096
.data                     8     4200
.sdata                    4     4208
.srodata.cst4             2     4212
.bss                   9000     8192
.comment                 31        0
Total                 10628
"""


def test_a_table_of_sections() -> None:
    assert sizes.sizes_of(TABLE) == {"text": 1000, "rodata": 218, "data": 52, "total": 1270}


def test_the_plain_c_that_is_measured(tmp_path: Path) -> None:
    sizes.write_mlp(tmp_path / "net")
    source = (tmp_path / "net" / "sparseinfer.c").read_text()
    assert source.count("linear_int8(&") == 3
    assert (tmp_path / "net" / "net.bin").stat().st_size < 0.4 * (784 * 256 + 256 * 256 + 2560)


def record(total: int, compiler: str = "GCC: 12.2.0") -> dict[str, Any]:
    return {"aarch64": {"compiler": compiler, "core": {"text": total, "total": total}}}


@pytest.mark.parametrize(
    ("total", "compiler", "told"),
    [
        (900, "GCC: 12.2.0", None),
        (1050, "GCC: 12.2.0", None),
        (1051, "GCC: 12.2.0", "aarch64, core: expected 1,000 bytes at most 5% more, got 1,051"),
        (1000, "GCC: 14.1.0", "aarch64: expected sizes of GCC: 14.1.0, got a record of GCC: 12"),
    ],
)
def test_growth(total: int, compiler: str, told: str | None) -> None:
    lines = list(sizes.growth(record(1000), record(total, compiler)))
    assert len(lines) == (told is not None)
    if told is not None:
        assert lines[0].startswith(told)


def test_a_program_without_a_record() -> None:
    found = record(1000)
    found["aarch64"]["runner"] = {"total": 5}
    assert list(sizes.growth(record(1000), found)) == [
        "aarch64, runner: expected a recorded size, got none"
    ]
    assert "got a record of none" in next(sizes.growth({}, found))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = sizes.typer.Typer()
    app.command()(sizes.main)
    path = tmp_path / "sizes.json"
    found = record(1000)
    monkeypatch.setattr(sizes, "measure_all", lambda console: found)
    command = ["--sizes", str(path)]
    assert CliRunner().invoke(app, [*command, "--record"]).exit_code == 0
    assert CliRunner().invoke(app, command).exit_code == 0
    found["aarch64"]["core"]["total"] = 1100
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "try make sizes SIZES=--record" in refused.output


def test_the_committed_record_is_whole_and_within_what_is_promised() -> None:
    kept = json.loads((ROOT / "benchmarks" / "sizes.json").read_text(encoding="utf-8"))
    assert kept["date"] and kept["options"] == list(sizes.OPTIONS)
    options = {program.name: list(program.options) for program in PROGRAMS}
    assert kept["programs of"] == {**options, "mlp": list(sizes.PLAIN_C)}
    boards = [processor.name for processor in PROCESSORS]
    assert list(kept["sizes"]) == [*boards, *sizes.CORES]
    for name, line in kept["sizes"].items():
        assert line["compiler"].startswith("GCC: ")
        for program in options if name in boards else ["mlp"]:
            parts = line[program]
            assert parts["total"] == parts["text"] + parts["rodata"] + parts["data"] > 0
    assert kept["sizes"]["aarch64"]["core"]["total"] <= 40_000
    assert kept["sizes"]["aarch64"]["runner"]["total"] <= 120_000
    assert all(kept["sizes"][core]["mlp"]["total"] <= 16_000 for core in sizes.CORES)
