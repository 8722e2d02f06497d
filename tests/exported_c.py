"""Models as C programs, for tests: exported, compiled and run on this machine or on another."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparseinfer.export.c.folder import files_of, write_folder
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")

MAIN = """\
#include <stdio.h>

#include "sparseinfer.h"

static net_context context;
static float x[NET_X_ELEMENTS], y[NET_Y_ELEMENTS];

int main(void) {
  if (fread(x, sizeof x, 1, stdin) != 1) return 1;
  net_run(&context, x, y);
  return fwrite(y, sizeof y, 1, stdout) != 1;
}
"""
"""What runs a model of one input and one output, named net."""


def compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler; it would build an exported model")
    return found


def call(*words: str | Path, cwd: Path, stdin: bytes = b"") -> bytes:
    """What a command prints; its whole output in the failure where it fails."""
    done = subprocess.run(list(map(str, words)), cwd=cwd, input=stdin, capture_output=True)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode(errors="replace")
    return done.stdout


def compiled(model: nn.Module, x: Tensor, weights: str) -> Engine:
    """The engine of a model, with golden outputs and the bounds that they have on any machine."""
    options: dict[str, object] = {}
    if weights == "int8":
        torch.manual_seed(1)
        options = {"weights": "int8", "calibration": [x + 0.1 * torch.randn_like(x), x]}
    return compile(model, x, baselines=(), golden=True, **options)


def bound_of(engine: Engine) -> float:
    """How far an output may be from the golden one on any machine, as the file has it."""
    size = engine.facts().bytes["golden inputs and outputs"]
    return float(np.frombuffer(bytes(engine.file[-size:][:4].numpy()), np.float32)[0])


def amalgamated(engine: Engine, folder: Path) -> Path:
    """A folder with the plain C of an engine of one input and one output."""
    write_folder(folder, files_of(engine, "amalgamation", "net"))
    (folder / "main.c").write_text(MAIN)
    return folder


def sources(folder: Path) -> list[str]:
    return ["main.c", "sparseinfer.c", *(["net.S"] if (folder / "net.S").exists() else [])]


def run_here(folder: Path, x: Tensor, options: Sequence[str] = ("-O2",)) -> np.ndarray:
    """What the compiled program gives on this machine."""
    call(compiler(), *WARNINGS, *options, "-I.", *sources(folder), "-lm", "-o", "main", cwd=folder)
    out = call(folder / "main", cwd=folder, stdin=x.contiguous().numpy().tobytes())
    return np.frombuffer(out, np.float32)


def check_outputs(engine: Engine, x: Tensor, found: np.ndarray, exact: bool) -> None:
    """Integers bit for bit; floats within what the file allows of any machine."""
    expected = engine(x).numpy().ravel()
    assert found.shape == expected.shape and np.isfinite(expected).all()
    assert np.ptp(expected) > 0
    if exact:
        assert np.array_equal(found, expected)
    else:
        assert np.abs(found - expected).max() <= bound_of(engine)


def in_blocks(model: nn.Module, density: float) -> None:
    """Zero weights in groups of four consecutive ones of a row."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            rows = module.weight.data.view(len(module.weight), -1)
            kept = torch.rand(len(rows), -(-rows.shape[1] // 4)) < density
            rows *= kept.repeat_interleave(4, 1)[:, : rows.shape[1]]


Make = Callable[[], tuple[nn.Module, Tensor]]
