"""The program that converts beside load: what it takes for hard to believe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.busy import load, main, network, suspects


def _keep(folder: Path, name: str, **comparison: object) -> None:
    found = {"speedup": 2.0, "doubt": "", **comparison}
    (folder / f"{name}.json").write_text(json.dumps({"comparison": found}))


def test_what_is_hard_to_believe(tmp_path: Path) -> None:
    _keep(tmp_path, "sound")
    assert suspects(tmp_path, density=0.1) == []
    _keep(tmp_path, "doubted", doubt="2 of 3 rounds were interrupted")
    _keep(tmp_path, "nonsense", speedup=860.0)
    assert [line.partition(":")[0] for line in suspects(tmp_path, density=0.1)] == [
        "doubted.json", "nonsense.json",
    ]  # fmt: skip


def test_the_network_and_its_zeros() -> None:
    model = network(3, 32, 0.25)
    share = sum(float((layer.weight != 0).sum()) for layer in model) / (3 * 32 * 32)
    assert 0.2 < share < 0.3 and not model.training


@pytest.mark.slow
def test_nothing_that_is_hard_to_believe_is_kept_beside_load(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with load(1):
        assert main(["--load", "3", "--layers", "1", "--size", "128"]) == 0
    assert capsys.readouterr().out.count("spinning processes") == 2
