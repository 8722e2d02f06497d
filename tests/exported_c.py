"""Models as C programs, for tests: exported, compiled and run on this machine or on another."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import prune
from torch import Tensor, nn

from sparseinfer.export.c.folder import files_of, write_folder
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def main_of(inputs: int, outputs: int) -> str:
    """What runs a model of so many inputs and outputs, named net: one after another, by pipes."""
    ends = {"x": inputs, "y": outputs}
    names = {
        end: [end] if count == 1 else [f"{end}{at}" for at in range(count)]
        for end, count in ends.items()
    }
    every = [*names["x"], *names["y"]]
    buffers = "".join(f"static float {name}[NET_{name.upper()}_ELEMENTS];\n" for name in every)
    read = "".join(f"  if (fread({x}, sizeof {x}, 1, stdin) != 1) return 1;\n" for x in names["x"])
    write = "".join(
        f"  if (fwrite({y}, sizeof {y}, 1, stdout) != 1) return 1;\n" for y in names["y"]
    )
    return f"""\
#include <stdio.h>

#include "sparseinfer.h"

static net_context context;
{buffers}
int main(void) {{
{read}  net_run(&context, {", ".join(every)});
{write}  return 0;
}}
"""


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


def compiled(model: nn.Module, x: Tensor | tuple[Tensor, ...], weights: str) -> Engine:
    """The engine of a model, with golden outputs and the bounds that they have on any machine."""
    options: dict[str, object] = {}
    if weights == "int8":
        assert isinstance(x, Tensor), "samples are of one input"
        torch.manual_seed(1)
        options = {"weights": "int8", "calibration": [x + 0.1 * torch.randn_like(x), x]}
    return compile(model, x, baselines=(), golden=True, **options)


def bound_of(engine: Engine, output: int = 0) -> float:
    """How far an output may be from the golden one on any machine, as the file has it."""
    size = engine.facts().bytes["golden inputs and outputs"]
    bounds = engine.file[-size:][4 * output : 4 * output + 4]
    return float(np.frombuffer(bytes(bounds.numpy()), np.float32)[0])


def amalgamated(engine: Engine, folder: Path) -> Path:
    """A folder with the plain C of an engine, and a program that runs it."""
    write_folder(folder, files_of(engine, "amalgamation", "net"))
    facts = engine.facts()
    (folder / "main.c").write_text(main_of(len(facts.inputs), len(facts.outputs)))
    return folder


def sources(folder: Path) -> list[str]:
    return ["main.c", "sparseinfer.c", *(["net.S"] if (folder / "net.S").exists() else [])]


def run_here(folder: Path, *inputs: Tensor, options: Sequence[str] = ("-O2",)) -> np.ndarray:
    """What the compiled program gives on this machine: its outputs one after another."""
    call(compiler(), *WARNINGS, *options, "-I.", *sources(folder), "-lm", "-o", "main", cwd=folder)
    given = b"".join(x.contiguous().numpy().tobytes() for x in inputs)
    out = call(folder / "main", cwd=folder, stdin=given)
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


def pruned(model: nn.Module, *shape: int) -> tuple[nn.Module, Tensor]:
    prune(model, 0.8)
    return model.eval(), torch.randn(*shape)


Make = Callable[[], tuple[nn.Module, Tensor]]
