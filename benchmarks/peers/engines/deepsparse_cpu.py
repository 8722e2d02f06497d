"""DeepSparse: only where its user has agreed to its licence, which is for evaluation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.peers.engines.interface import Array, Layer, Prepared, UnsupportedError
from benchmarks.peers.engines.onnx_layer import make_model

# Read by the package when it is imported: it would report its use.
os.environ["NM_DISABLE_ANALYTICS"] = "True"

import deepsparse

MAX_COPIES = 12
"""Copies of a cold weight: each takes the engine seconds to compile."""


class DeepSparse:
    """An engine a copy of the weight."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def version(self) -> str:
        """Return DeepSparse's version."""
        return f"deepsparse {deepsparse.__version__}"

    def prepare(self, layer: Layer) -> Prepared:
        """Compile the layer once a copy.

        Raises:
            UnsupportedError: the engine does not take the layer's operation.
        """
        stored = 4 * max(int(np.count_nonzero(layer.weight)), 1)
        copies = min(layer.copies(stored), MAX_COPIES)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "layer.onnx"
            file.write_bytes(make_model(layer).SerializeToString())
            # The first dimension: a convolution's images, a linear layer's tokens.
            batch = layer.x.shape[0]
            engines = [
                deepsparse.compile_model(str(file), batch_size=batch, num_cores=self._threads)
                for _ in range(copies)
            ]
        if engines[0].fraction_of_supported_ops < 1:
            raise UnsupportedError("the engine hands this layer to ONNX Runtime")
        x = [layer.x]

        def call_of(engine: deepsparse.Engine) -> Callable[[], list[Array]]:
            return lambda: engine.run(x, val_inp=False)

        calls = [call_of(engine) for engine in engines]
        return Prepared(calls, lambda: calls[0]()[0], engines[0].num_cores)
