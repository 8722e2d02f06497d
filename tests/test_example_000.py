"""The walk through PyTorch's pruning runs, and each step does what its name says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from sparseinfer.demo import data

EXAMPLE = Path(__file__).parent.parent / "examples" / "000_pytorch_pruning.py"


@pytest.mark.slow
def test_every_step_of_the_walk_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    spec = importlib.util.spec_from_file_location("example_000", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example_000", module)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = module.run(
            ["--out", str(tmp_path), "--epochs", "3", "--fine-tune-epochs", "2",
             "--train-images", "600", "--sparsity", "0.8", "--floor", "0.15"]
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    zeros = {step.name.split(",")[0]: step.zeros for step in steps}
    assert zeros["dense"] == 0.0
    assert zeros["random unstructured"] == pytest.approx(0.7, abs=1e-4)
    assert zeros["L1 unstructured"] == pytest.approx(0.7, abs=1e-4)
    assert zeros["Ln structured"] == pytest.approx(38 / 128, abs=1e-4)
    assert zeros["custom mask"] == zeros["remove: the same zeros"] == pytest.approx(8 / 9, abs=1e-4)
    assert zeros["global magnitude"] == zeros["... after fine-tuning with the masks held"]
    assert zeros["global magnitude"] == pytest.approx(0.8, abs=1e-4)
    accuracy = {step.name.split(",")[0]: step.accuracy for step in steps}
    dense, shot = accuracy["dense"], accuracy["global magnitude"]
    tuned = accuracy["... after fine-tuning with the masks held"]
    assert dense > 0.6 and tuned >= shot
    assert steps[-1].zeros > 0.2 and steps[-1].accuracy > dense - 0.3
    assert (tmp_path / "sensitivity.png").is_file() and (tmp_path / "sparse.pt").is_file()
    shown = capsys.readouterr().out
    assert "accuracy with this one layer pruned" in shown and "step by step" in shown
