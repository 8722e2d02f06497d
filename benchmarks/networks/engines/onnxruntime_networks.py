"""ONNX Runtime on the CPU, inputs and outputs bound once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.networks.worker import ReadyNetwork
from benchmarks.peers.engines.interface import UnsupportedError


class OnnxRuntime:
    """A session with every graph optimisation."""

    FILE = "model.onnx"

    def __init__(self, threads: int) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3

    def version(self) -> str:
        """ONNX Runtime's version."""
        return f"onnxruntime {onnxruntime.__version__}"

    def prepare(self, folder: Path, network: str) -> ReadyNetwork:
        """Load the file.

        Raises:
            UnsupportedError: the parent could not write it.
        """
        path = folder / self.FILE
        if not path.exists():
            raise UnsupportedError(f"no {self.FILE}: the model could not be written as such")
        session = onnxruntime.InferenceSession(
            str(path), self._options, providers=["CPUExecutionProvider"]
        )
        x = np.load(folder / "x.npy", allow_pickle=False)
        y = np.empty(np.load(folder / "exact.npy", allow_pickle=False).shape, np.float32)
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, x)
        binding.bind_output(
            session.get_outputs()[0].name, element_type=np.float32, shape=y.shape,
            buffer_ptr=y.ctypes.data,
        )  # fmt: skip

        def result() -> np.ndarray:  # type: ignore[type-arg]
            y.fill(np.nan)
            session.run_with_iobinding(binding)
            return y

        threads = self._options.intra_op_num_threads
        return ReadyNetwork(lambda: session.run_with_iobinding(binding), result, threads, (x, y))


class OnnxRuntimeInt8(OnnxRuntime):
    """The model as ONNX Runtime's own quantiser writes it."""

    FILE = "model.int8.onnx"
