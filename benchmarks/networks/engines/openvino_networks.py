"""OpenVINO on the CPU, for the latency of one request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino

from benchmarks.networks.worker import ReadyNetwork
from benchmarks.peers.engines.interface import UnsupportedError


class OpenVino:
    """The ONNX file in float32."""

    FILE, PRECISION = "model.onnx", "f32"

    def __init__(self, threads: int) -> None:
        self._core = openvino.Core()
        self._threads = threads

    def version(self) -> str:
        """OpenVINO's version."""
        return f"openvino {openvino.__version__.split('-')[0]}"

    def prepare(self, folder: Path, network: str) -> ReadyNetwork:
        """Compile the file.

        Raises:
            UnsupportedError: the parent could not write it, or the CPU lacks the type.
        """
        path = folder / self.FILE
        if not path.exists():
            raise UnsupportedError(f"no {self.FILE}: the model could not be written as such")
        if self.PRECISION == "bf16":
            if "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise UnsupportedError("has no bfloat16 products on this CPU")
        compiled = self._core.compile_model(str(path), "CPU", {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": self.PRECISION,
        })  # fmt: skip
        request = compiled.create_infer_request()
        x = np.load(folder / "x.npy", allow_pickle=False)
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def result() -> np.ndarray:  # type: ignore[type-arg]
            request.infer()
            return request.get_output_tensor().data

        threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        return ReadyNetwork(request.infer, result, threads, (x,))


class OpenVinoBfloat16(OpenVino):
    """Products in bfloat16."""

    PRECISION = "bf16"


class OpenVinoInt8(OpenVino):
    """The file of ONNX Runtime's quantiser."""

    FILE = "model.int8.onnx"
