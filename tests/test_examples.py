"""The examples run, as the programs they are, and show what they promise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import sparseinfer
from sparseinfer.demo import data

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Imports an example, whose name begins with a digit; its data is the same everywhere."""
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    threads = torch.get_num_threads()
    # Small layers wait for each other's threads longer than they compute.
    torch.set_num_threads(1)

    def imported(file):
        name = f"example_{file[:3]}"
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    yield imported
    torch.set_num_threads(threads)


def test_001_prune_a_saved_checkpoint(example, tmp_path, capsys):
    out = tmp_path / "out"
    outcomes = example("001_prune_a_saved_checkpoint.py").run(
        ["--out", str(out), "--epochs", "1", "--train-images", "400", "--amount", "0.75"]
    )
    trained, by_threshold, over_all, per_layer = outcomes
    # Eight steps already tell digits apart better than chance, a tenth.
    assert trained.accuracy > 0.3 and over_all.accuracy > 0.15
    assert 0 < by_threshold.zeros < 1
    for outcome in (over_all, per_layer):
        assert outcome.zeros == pytest.approx(0.75, abs=1e-3)
        assert outcome.sparse_bytes < 0.35 * outcome.dense_bytes
    # Zeros alone save nothing, nor does the sparse format without them.
    assert by_threshold.dense_bytes == pytest.approx(trained.dense_bytes, rel=0.01)
    assert trained.sparse_bytes == pytest.approx(trained.dense_bytes, rel=0.01)
    shown = capsys.readouterr().out
    assert "75% of each layer" in shown and "layers run sparse" in shown
    assert sparseinfer.load_sparse(out / "pruned3.safetensors").keys() == (
        sparseinfer.load_sparse(out / "trained.pth").keys()
    )
