"""The fuzzer of file readers: it finds what is planted, and tells the seed."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparseinfer.checkpoints import CheckpointError, facts, load_sparse
from tests.fuzz import corpus, files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return corpus.make_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_whole_files_are_read(whole, tmp_path):
    for name in ("one.safetensors", "two.pth"):
        (tmp_path / name).write_bytes(whole["plain.safetensors"])
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
        try:
            assert load_sparse(tmp_path / name)
        except CheckpointError as error:
            # Two shards of the same tensors, which only a damaged index may be read with.
            assert name.endswith(".index.json"), f"{name}: {error}"


def test_damaged_files_are_refused_or_read(whole, tmp_path):
    for seed in range(60):
        assert files.feed(seed, whole, tmp_path) == []


def test_a_seed_gives_the_same_file_again(whole, tmp_path):
    def damaged(seed):
        return corpus.damage(whole["state.pth"], "state.pth", whole, random.Random(seed))

    assert [damaged(seed) for seed in range(20)] == [damaged(seed) for seed in range(20)]
    assert len({damaged(seed) for seed in range(20)}) > 15


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("planted"), "inspect: .*: KeyError: 'planted'"),
        (CheckpointError("two\nlines"), "inspect: .*: more than one line"),
    ],
)
def test_what_a_reader_must_not_raise_is_found(whole, tmp_path, monkeypatch, error, told):
    def planted(*_):
        raise error

    monkeypatch.setattr(facts, "open_checkpoint", planted)
    (failure,) = files.feed(5, whole, tmp_path)
    assert re.match(told, failure)


@pytest.mark.slow
def test_a_crash_is_told_with_its_seed(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from sparseinfer.checkpoints import facts\n"
        "facts.open_checkpoint = lambda *_: os.abort()\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.files", "--seed", "5", "--count", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 1 and "FAIL seed 5: killed by SIGABRT" in done.stdout
