"""OpenVINO on the CPU: in float32, and in the bfloat16 that it takes where the CPU has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino

from benchmarks.peers.engines.interface import Array, Layer, Prepared, UnsupportedError
from benchmarks.peers.engines.onnx_layer import make_model

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
            request.set_input_tensor(openvino.Tensor(layer.x, shared_memory=True))
        calls: list[Callable[[], object]] = [request.infer for request in requests]

        def result() -> Array:
            y = requests[0].get_output_tensor().data
            y[:] = np.nan
            calls[0]()
            return requests[0].get_output_tensor().data

        threads = int(compiled[0].get_property("INFERENCE_NUM_THREADS"))
        return Prepared(calls, result, threads, _NAMES.get(kind, kind))


class OpenVinoDefault(OpenVino):
    """The precision that OpenVINO chooses: bfloat16 where the CPU multiplies in it."""

    settings: dict[str, Any] = {}  # noqa: RUF012
