"""MNN: float32 layers in its sparse kernels, which its converter chooses where they are faster.

Its int8 kernels are out of reach: it fails on models with ONNX's quantisers, and weights that
the converter has quantised are multiplied in float32 on this kind of processor. Of the package only
the engine and the converter beneath its command-line tools are imported: the tools themselves
report their use, and install packages for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import _tools  # type: ignore[import-not-found]
import MNN  # type: ignore[import-not-found]
import numpy as np

from benchmarks.peers.engines.interface import Array, Layer, Prepared
from benchmarks.peers.engines.onnx_layer import INPUT, OUTPUT, make_model


class MnnEngine:
    """MNN with so many threads, in float32 throughout."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._runtime = MNN.nn.create_runtime_manager(
            ({"backend": "CPU", "precision": "high", "numThread": threads},)
        )

    def version(self) -> str:
        """Return MNN's version."""
        return f"mnn {MNN.version()}"

    def convert(self, source: Path) -> Path:
        """Convert an ONNX file, with sparse kernels where MNN chooses them."""
        file = source.with_suffix(".mnn")
        _tools.mnnconvert(
            ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(file),
             "--bizCode", "benchmark", "--detectSparseSpeedUp"]
        )  # fmt: skip
        return file

    def load(self, file: Path) -> MNN.nn._Module:
        """A module of a converted file."""
        return MNN.nn.load_module_from_file(
            str(file), [INPUT], [OUTPUT], runtime_manager=self._runtime
        )


class Mnn(MnnEngine):
    """A module a copy of the weight."""

    def prepare(self, layer: Layer) -> Prepared:
        """Convert the layer and load it once a copy."""
        stored = 4 * max(int(np.count_nonzero(layer.weight)), 1)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "layer.onnx"
            source.write_bytes(make_model(layer).SerializeToString())
            file = self.convert(source)
            modules = [self.load(file) for _ in range(layer.copies(stored))]
        x = MNN.expr.const(layer.x, list(layer.x.shape), MNN.expr.NCHW, MNN.expr.float)

        def call_of(module: MNN.nn._Module) -> Callable[[], Array]:
            # Read, because a result is in MNN's own order until then.
            return lambda: module.forward(x).read()

        calls = [call_of(module) for module in modules]

        def result() -> Array:
            return np.array(calls[0](), np.float32).reshape(layer.out_shape)

        return Prepared(calls, result, self._threads)
