"""MNN in float32, with its sparse kernels where its converter chooses them."""

from __future__ import annotations

from pathlib import Path

import MNN  # type: ignore[import-not-found]
import numpy as np

from benchmarks.networks.worker import ReadyNetwork
from benchmarks.peers.engines.mnn_cpu import MnnEngine

KINDS = {"float32": (MNN.expr.float, np.float32), "int64": (MNN.expr.int, np.int32)}


class Mnn(MnnEngine):
    """The ONNX file, converted."""

    def prepare(self, folder: Path, network: str) -> ReadyNetwork:
        """Convert the file and load it."""
        module = self.load(self.convert(folder / "model.onnx"))
        given = np.load(folder / "x.npy", allow_pickle=False)
        shape = np.load(folder / "exact.npy", allow_pickle=False).shape
        kind, narrow = KINDS[str(given.dtype)]
        x = MNN.expr.const(given.astype(narrow), list(given.shape), MNN.expr.NCHW, kind)

        def call() -> np.ndarray:  # type: ignore[type-arg]
            # Read, because a result is in MNN's own order until then.
            return module.forward(x).read()  # type: ignore[no-any-return]

        return ReadyNetwork(
            call, lambda: np.array(call(), np.float32).reshape(shape), self._threads
        )
