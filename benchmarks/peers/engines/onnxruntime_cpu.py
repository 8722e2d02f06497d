"""ONNX Runtime on the CPU in float32, inputs and outputs bound once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime

from benchmarks.peers.engines.interface import Array, Layer, Prepared
from benchmarks.peers.engines.onnx_layer import INPUT, OUTPUT, make_model


class OnnxRuntime:
    """A session a copy of the weight, with every graph optimisation."""

    def __init__(self, threads: int) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3

    def version(self) -> str:
        """Return ONNX Runtime's version."""
        return f"onnxruntime {onnxruntime.__version__}"

    def prepare(self, layer: Layer) -> Prepared:
        """Load the layer's model once a copy; all write the same y."""
        model = make_model(layer).SerializeToString()
        y = np.empty(layer.out_shape, np.float32)

        def load() -> Callable[[], object]:
            session = onnxruntime.InferenceSession(
                model, self._options, providers=["CPUExecutionProvider"]
            )
            binding = session.io_binding()
            binding.bind_cpu_input(INPUT, layer.x)
            binding.bind_output(
                OUTPUT, element_type=np.float32, shape=y.shape, buffer_ptr=y.ctypes.data
            )
            return lambda: session.run_with_iobinding(binding)

        calls = [load() for _ in range(layer.copies(layer.weight.nbytes))]

        def result() -> Array:
            y.fill(np.nan)
            calls[0]()
            return y

        return Prepared(calls, result, self._options.intra_op_num_threads)
