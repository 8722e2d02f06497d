"""A saved engine in a process that has seen nothing of what it was made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.export.engine import Engine
from sparseinfer.export.signature import tensors_of

__all__ = ["check_elsewhere"]

CODE = (
    "import torch, sparseinfer, sys\n"
    "from sparseinfer.export.signature import tensors_of\n"
    "inputs, known = torch.load(sys.argv[2])\n"
    "engine = sparseinfer.load_engine(sys.argv[1], threads=2)\n"
    "assert engine.selftest() < 1\n"
    "assert all(map(torch.equal, tensors_of(engine(**inputs)), known))\n"
)


def check_elsewhere(engine: Engine, inputs: dict[str, Tensor], folder: Path) -> None:
    """Save an engine that has golden outputs, and run it in a fresh process, to the same bits."""
    engine.save(folder / "model.sinf")
    torch.save((inputs, list(tensors_of(engine(**inputs)))), folder / "calls.pt")
    files = [str(folder / name) for name in ("model.sinf", "calls.pt")]
    subprocess.run([sys.executable, "-c", CODE, *files], check=True, timeout=120)
