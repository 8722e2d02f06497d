"""The networks of rapidocr, where it is installed: they come with its packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from onnx_models import ops, quick

PACKAGES = ("rapidocr", "rapidocr_onnxruntime")


def models() -> list[Path]:
    found: list[Path] = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in [] if spec is None else spec.submodule_search_locations or []:
            found += Path(folder).rglob("*.onnx")
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("path", models() or [None], ids=lambda path: path and path.stem)
def test_networks(path: Path | None) -> None:
    """They find lines of text, turn them, and read them: each as ONNX Runtime does."""
    if path is None:
        pytest.skip(f"needs the models of a package, {' or '.join(PACKAGES)}")
    torch.manual_seed(0)
    shape = (2, 3, 64, 96) if "_det_" in path.name else (2, 3, 48, 160)
    engine = quick(path, torch.rand(shape), dynamic="batch")
    assert "ONNX Runtime" in engine.report().error
    assert "conv" in ops(engine) and engine.most_batch > 2
