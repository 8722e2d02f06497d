"""The files of all programs: one codec, what it refuses, and that those in the tree are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table, targets, threads
from benchmarks.gpu.rows import REHEARSED, GpuResults, Timed
from benchmarks.machine import ROOT
from benchmarks.models.rows import ModelResults
from benchmarks.models.table import markdown_section
from benchmarks.networks.results import NetworkResults
from benchmarks.peers.plot import draw as draw_peers
from benchmarks.peers.results import PeerResults
from benchmarks.peers.table import as_markdown
from benchmarks.plot import draw
from benchmarks.pruning import PruningResults, summarise
from benchmarks.pruning_structures import StructureResults
from benchmarks.pruning_structures import summarise as summarise_structures
from benchmarks.record import Record
from benchmarks.results import Results

FILES = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
PROGRAMS: dict[str, type[Record]] = {
    "peers": PeerResults,
    "models": ModelResults,
    "networks": NetworkResults,
    "pruning": PruningResults,
    "pruning/structures.json": StructureResults,
}
"""What writes the files of a folder, or one of them; the others are of `benchmarks.run`."""

EVERY = [
    Results,
    threads.ThreadResults,
    PeerResults,
    ModelResults,
    NetworkResults,
    GpuResults,
    PruningResults,
    StructureResults,
]


def program_of(path: Path) -> type[Record]:
    folder = PROGRAMS.get(path.parent.name, Results)
    return PROGRAMS.get(f"{path.parent.name}/{path.name}", folder)


def files_of(cls: type[Record]) -> list[Any]:
    found = [path for path in FILES if program_of(path) is cls]
    assert found
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


def keeps(written: Any, read: Any) -> bool:
    """Whether all that was read is written again; fields that are newer than the file are added."""
    if isinstance(read, dict):
        return all(key in written and keeps(written[key], read[key]) for key in read)
    if isinstance(read, list):
        return len(written) == len(read) and all(map(keeps, written, read))
    return bool(written == read)


# ---- what is in the tree


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_of_the_tree_is_read_and_written_as_it_was(path: Path) -> None:
    found = program_of(path).read(path)
    assert found.command.startswith("python -m benchmarks.")
    assert keeps(json.loads(found.to_json()), json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", files_of(Results))
def test_rows_of_the_tree_agree_with_their_summary_and_can_be_shown(
    path: Path, tmp_path: Path
) -> None:
    results = Results.read(path)
    assert results.rows
    recomputed = targets.summarise(results.rows)
    assert [(c.name, c.sparsity, c.threads, c.cases) for c in recomputed] == [
        (c.name, c.sparsity, c.threads, c.cases) for c in results.summary
    ]
    for ours, theirs in zip(recomputed, results.summary, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-3)
    assert table.speedup_tables(results)
    draw(results, table.GROUPS, table.KERNEL_SUITES, tmp_path / "plot.png")


@pytest.mark.parametrize("path", files_of(ModelResults))
def test_models_of_the_tree_can_be_shown(path: Path) -> None:
    results = ModelResults.read(path)
    assert results.rows[0].model in markdown_section(results)


@pytest.mark.parametrize("path", files_of(PeerResults))
def test_peers_of_the_tree_can_be_shown(path: Path, tmp_path: Path) -> None:
    results = PeerResults.read(path)
    assert "Every layer" in as_markdown(results)
    draw_peers(results, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", files_of(PruningResults))
def test_pruning_of_the_tree_agrees_with_its_summary(path: Path) -> None:
    results = PruningResults.read(path)
    for name, values in summarise(results.rows).items():
        assert results.summary[name] == pytest.approx(values, rel=1e-3)


@pytest.mark.parametrize("path", files_of(StructureResults))
def test_structures_of_the_tree_agree_with_their_summary(path: Path) -> None:
    results = StructureResults.read(path)
    recomputed = summarise_structures(results.rows)
    assert [row.structure for row in recomputed] == [row.structure for row in results.summary]
    for ours, theirs in zip(recomputed, results.summary, strict=True):
        assert ours.mean == pytest.approx(theirs.mean, rel=1e-3, abs=1e-9)


# ---- reading and writing


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.PROGRAM)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "expected a file of schema 1, got None"),
        ("{}", "expected a file of schema 1, got None"),
        ('{"schema": 0}', "got 0"),
        ('{"schema": true}', "got True"),
        ("[" * 100_000, "expected JSON of a few levels"),
        ('{"schema": 1}', "expected the field date, got none"),
        ('{"schema": 1, "rows": [{}]}', "expected the field"),
    ],
    ids=["empty", "list", "none", "old", "true", "deep", "bare", "row"],
)
def test_other_files_are_refused(cls: type[Record], text: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"expected a result file of .*{why}.*try {cls.PROGRAM}"):
        cls.from_json(text)


def test_a_record_begins_with_the_machine_and_the_command() -> None:
    found = Results.begin(["--out", "a b.json"], {"quick": True})
    assert found.command == "python -m benchmarks.run --out 'a b.json'"
    assert found.date.endswith("+00:00") and not found.complete and not found.rows
    assert found.machine["cpu"] and found.versions["torch"]
    assert set(found.commit) == {"hash", "dirty"}
    other = GpuResults.begin([], {}, kind=REHEARSED, machine={"gpu": "one"})
    assert (other.kind, other.machine) == (REHEARSED, {"gpu": "one"})


def test_the_rows_of_a_gpu_are_read_as_they_were_written(tmp_path: Path) -> None:
    row = Timed(
        "layers", "one", 8, 8, 4, "2:4", 0.5, "dense", "graph", 1, 1.5, 1.0, 2.0, 1.0, 1.0, 1.0, 256
    )
    found = GpuResults.begin([], {}, kind=REHEARSED)
    found.rows += [row, row]
    path = tmp_path / "new" / "gpu.json"
    found.write(path)
    assert GpuResults.read(path) == found
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if '"suite"' in line]) == 2, "a row a line"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no"):
        Results.begin([], {}).write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text(encoding="utf-8") == "old"
