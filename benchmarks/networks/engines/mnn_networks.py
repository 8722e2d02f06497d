"""MNN in float32, with its sparse kernels where its converter chooses them."""

from __future__ import annotations

from pathlib import Path

import _tools  # type: ignore[import-not-found]
import MNN  # type: ignore[import-not-found]
import numpy as np

from benchmarks.networks.worker import ReadyNetwork

KINDS = {"float32": MNN.expr.float, "int64": MNN.expr.int}


class Mnn:
    """The ONNX file, converted."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._runtime = MNN.nn.create_runtime_manager(
            ({"backend": "CPU", "precision": "high", "numThread": threads},)
        )

    def version(self) -> str:
        """MNN's version."""
        return f"mnn {MNN.version()}"

    def prepare(self, folder: Path, network: str) -> ReadyNetwork:
        """Convert the file and load it."""
        file = folder / "model.mnn"
        _tools.mnnconvert(
            ["mnnconvert", "-f", "ONNX", "--modelFile", str(folder / "model.onnx"), "--MNNModel",
             str(file), "--bizCode", "network", "--detectSparseSpeedUp"]
        )  # fmt: skip
        module = MNN.nn.load_module_from_file(
            str(file), ["x"], ["y"], runtime_manager=self._runtime
        )
        given = np.load(folder / "x.npy", allow_pickle=False)
        shape = np.load(folder / "exact.npy", allow_pickle=False).shape
        kind = KINDS[str(given.dtype)]
        narrow = given.astype(np.int32) if kind == MNN.expr.int else given
        x = MNN.expr.const(narrow, list(given.shape), MNN.expr.NCHW, kind)

        def call() -> np.ndarray:  # type: ignore[type-arg]
            # Read, because a result is in MNN's own order until then.
            return module.forward(x).read()  # type: ignore[no-any-return]

        return ReadyNetwork(
            call, lambda: np.array(call(), np.float32).reshape(shape), self._threads
        )
