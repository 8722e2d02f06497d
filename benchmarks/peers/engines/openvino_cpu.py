"""OpenVINO on the CPU: float32, int8, and the bfloat16 that it takes where the CPU has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino

from benchmarks.peers.engines.bfloat16 import from_bits, to_bits
from benchmarks.peers.engines.interface import Array, Layer, Prepared, UnsupportedError
from benchmarks.peers.engines.onnx_layer import make_model
from benchmarks.peers.engines.onnx_quantized import (
    channels_first,
    channels_last,
    is_channels_last,
    quantized_model,
)

_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class OpenVino:
    """A compiled model a copy of the weight, for the latency of one request."""

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}  # noqa: RUF012

    def __init__(self, threads: int) -> None:
        self._core = openvino.Core()
        self._threads = threads

    def version(self) -> str:
        """Return OpenVINO's version."""
        return f"openvino {openvino.__version__.split('-')[0]}"

    def prepare(self, layer: Layer) -> Prepared:
        """Compile the layer once a copy.

        Raises:
            UnsupportedError: the engine's default precision was asked for and is float32.
        """
        model = self._core.read_model(make_model(layer).SerializeToString())
        return self._prepared(layer, model, layer.x)

    def _prepared(
        self, layer: Layer, model: openvino.Model, x: Array, precision: str = ""
    ) -> Prepared:
        options = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self._threads, **self.settings,
        }  # fmt: skip
        compiled = [self._core.compile_model(model, "CPU", options)]
        kind = compiled[0].get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if not self.settings and kind == "f32":
            raise UnsupportedError("computes in float32 on this CPU by default")
        copies = layer.copies(layer.weight.nbytes)
        compiled += [self._core.compile_model(model, "CPU", options) for _ in range(copies - 1)]
        requests = [one.create_infer_request() for one in compiled]
        for request in requests:
            request.set_input_tensor(_tensor_of(x))
        calls: list[Callable[[], object]] = [request.infer for request in requests]

        def result() -> Array:
            # Not a number, or what a wrong result would be noticed by.
            requests[0].get_output_tensor().data.view(np.uint8)[:] = 255
            calls[0]()
            y = requests[0].get_output_tensor().data
            if layer.io == "bfloat16":
                y = from_bits(y.view(np.uint16))
            return y if y.shape == layer.out_shape else channels_first(y)

        threads = int(compiled[0].get_property("INFERENCE_NUM_THREADS"))
        return Prepared(calls, result, threads, precision or _NAMES.get(kind, kind), x)


def _tensor_of(x: Array) -> openvino.Tensor:
    """Return a tensor that reads x where it is; uint16 are the bits of bfloat16."""
    if x.dtype == np.uint16:
        return openvino.Tensor(x, openvino.Shape(x.shape), openvino.Type.bf16)
    return openvino.Tensor(x, shared_memory=True)


class OpenVinoDefault(OpenVino):
    """The precision that OpenVINO chooses: bfloat16 where the CPU multiplies in it."""

    settings: dict[str, Any] = {}  # noqa: RUF012


class OpenVinoBfloat16(OpenVino):
    """bfloat16 products; x and y in bfloat16 too, where the layer is asked for so."""

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16"}  # noqa: RUF012

    def prepare(self, layer: Layer) -> Prepared:
        """Compile the layer once a copy.

        Raises:
            UnsupportedError: this CPU has no bfloat16 products.
        """
        if "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UnsupportedError("has no bfloat16 products on this CPU")
        model = self._core.read_model(make_model(layer).SerializeToString())
        if layer.io != "bfloat16":
            return self._prepared(layer, model, layer.x)
        ends = openvino.preprocess.PrePostProcessor(model)
        for end in (ends.input(0), ends.output(0)):
            end.tensor().set_element_type(openvino.Type.bf16)
            if is_channels_last(layer):
                end.tensor().set_layout(openvino.Layout("NHWC"))
                end.model().set_layout(openvino.Layout("NCHW"))
        x, _ = channels_last(layer)
        return self._prepared(layer, ends.build(), to_bits(x))


class OpenVinoInt8(OpenVino):
    """The layer with the quantisers that ONNX models carry; images of uint8 are channels-last."""

    def prepare(self, layer: Layer) -> Prepared:
        """Compile the layer once a copy."""
        model = quantized_model(layer, requantize=False)
        x, _ = channels_last(layer)
        read = self._core.read_model(model.SerializeToString())
        return self._prepared(layer, read, x, "int8")
