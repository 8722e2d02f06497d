"""DeepSparse: only where its user has agreed to its licence, which is for evaluation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.networks.worker import ReadyNetwork

# Read by the package when it is imported: it would report its use.
os.environ["NM_DISABLE_ANALYTICS"] = "True"

import deepsparse


class DeepSparse:
    """The ONNX file in float32."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def version(self) -> str:
        """DeepSparse's version."""
        return f"deepsparse {deepsparse.__version__}"

    def prepare(self, folder: Path, network: str) -> ReadyNetwork:
        """Compile the file; what the engine does not support it hands to ONNX Runtime."""
        x = [np.load(folder / "x.npy", allow_pickle=False)]
        engine = deepsparse.compile_model(
            str(folder / "model.onnx"), batch_size=len(x[0]), num_cores=self._threads
        )
        return ReadyNetwork(
            lambda: engine.run(x, val_inp=False), lambda: engine.run(x)[0], engine.num_cores
        )
