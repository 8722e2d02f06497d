"""OpenVINO on a layer that NNCF has quantised: given float32, it finds every scale itself."""

from __future__ import annotations

import dataclasses
import logging

import nncf  # type: ignore[import-not-found]
import numpy as np
import openvino

from benchmarks.peers.engines.interface import Layer, Prepared
from benchmarks.peers.engines.onnx_layer import make_model
from benchmarks.peers.engines.openvino_cpu import OpenVino


class OpenVinoNncf(OpenVino):
    """NNCF's post-training quantisation, calibrated on x.

    Inputs have a zero point, as ours do. Its correction of biases and its 7-bit weights for
    processors without VNNI are off: the integers are then those that all engines are given.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        nncf.set_log_level(logging.ERROR)

    def version(self) -> str:
        """Return OpenVINO's version and NNCF's."""
        return f"{super().version()}, nncf {nncf.__version__}"

    def prepare(self, layer: Layer) -> Prepared:
        """Quantise the layer, and compile it once a copy."""
        weight = np.ascontiguousarray(layer.real_weight, np.float32)
        real = dataclasses.replace(layer, weight=weight, bias=layer.float_bias, quantization=None)
        options = nncf.AdvancedQuantizationParameters(
            disable_bias_correction=True, overflow_fix=nncf.OverflowFix.DISABLE
        )
        quantised: openvino.Model = nncf.quantize(
            self._core.read_model(make_model(real).SerializeToString()),
            nncf.Dataset([layer.x]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=1,
            advanced_parameters=options,
        )
        return self._prepared(real, quantised, layer.x, "int8")
