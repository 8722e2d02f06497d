"""ONNX Runtime on the CPU in float32 and in int8, inputs and outputs bound once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime

from benchmarks.peers.engines.interface import Array, Layer, Prepared
from benchmarks.peers.engines.onnx_layer import INPUT, OUTPUT, make_model
from benchmarks.peers.engines.onnx_quantized import channels_first, channels_last, quantized_model


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
        return self._prepared(
            layer, make_model(layer).SerializeToString(), layer.x, layer.out_shape
        )

    def _prepared(
        self, layer: Layer, model: bytes, x: Array, out_shape: tuple[int, ...],
        precision: str = "float32",
    ) -> Prepared:  # fmt: skip
        y = np.empty(out_shape, layer.io)

        def load() -> Callable[[], object]:
            session = onnxruntime.InferenceSession(
                model, self._options, providers=["CPUExecutionProvider"]
            )
            binding = session.io_binding()
            binding.bind_cpu_input(INPUT, x)
            binding.bind_output(
                OUTPUT, element_type=y.dtype.type, shape=y.shape, buffer_ptr=y.ctypes.data
            )
            return lambda: session.run_with_iobinding(binding)

        calls = [load() for _ in range(layer.copies(layer.weight.nbytes))]

        def result() -> Array:
            # Not a number, or what a wrong result would be noticed by.
            y.view(np.uint8).fill(255)
            calls[0]()
            return y if y.shape == layer.out_shape else channels_first(y)

        return Prepared(calls, result, self._options.intra_op_num_threads, precision, x)


class OnnxRuntimeInt8(OnnxRuntime):
    """The layer with QuantizeLinear and DequantizeLinear, as ONNX Runtime's own quantiser writes.

    Images of uint8 are channels-last, which its convolution computes in.
    """

    def prepare(self, layer: Layer) -> Prepared:
        """Load the layer's model once a copy; all write the same y."""
        # Its convolution gives uint8 only.
        model = quantized_model(layer, requantize=layer.op == "conv").SerializeToString()
        x, shape = channels_last(layer)
        return self._prepared(layer, model, x, shape, "int8")
