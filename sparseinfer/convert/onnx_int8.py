"""One int8 layer as ONNX Runtime and OpenVINO run it, where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseinfer.quantize.activations import ActivationScale, scale_of_range
from sparseinfer.quantize.weights import quantize_weight

__all__ = ["onnxruntime_int8", "openvino_int8", "quantized_layer"]

_OPSET, _IR_VERSION = 13, 8


def onnxruntime_int8(
    dense: nn.Module, scale: ActivationScale | None, sample: Tensor, threads: int
) -> Callable[[Tensor], object]:
    """A call of ONNX Runtime's int8 layer with the weight of `dense`, float32 in and out.

    `scale` is that of the input; None: that of `sample`, which spares it finding one at every call.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: ONNX has no such layer.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> onnxruntime_int8(layer, None, torch.randn(2, 8), 1)  # doctest: +SKIP
    """
    import onnxruntime

    # Its convolution gives uint8 only.
    model = quantized_layer(dense, scale, sample, requantize=not isinstance(dense, nn.Linear))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": _rows(dense, x)})


def openvino_int8(
    dense: nn.Module, scale: ActivationScale | None, sample: Tensor, threads: int
) -> Callable[[Tensor], object]:
    """As `onnxruntime_int8`, by OpenVINO.

    Raises:
        ImportError: onnx or openvino is not installed.
        ValueError: ONNX has no such layer.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> openvino_int8(layer, None, torch.randn(2, 8), 1)  # doctest: +SKIP
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(quantized_layer(dense, scale, sample, requantize=False))
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def call(x: Tensor) -> object:
        rows = _rows(dense, x)
        return request.infer({"x": openvino.Tensor(rows, shared_memory=True)})

    return call


def quantized_layer(
    dense: Any, scale: ActivationScale | None, sample: Tensor, *, requantize: bool
) -> bytes:
    """An ONNX model of a linear layer or convolution between QuantizeLinear and DequantizeLinear.

    A linear layer takes x `[N, K]`. `requantize` rounds the output to uint8 on its way too.

    Raises:
        ImportError: onnx is not installed.
        ValueError: ONNX has no such layer.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> quantized_layer(layer, None, torch.randn(2, 8), requantize=False)  # doctest: +SKIP
    """
    from onnx import TensorProto, helper, numpy_helper

    weight = quantize_weight(dense.weight)
    scales = weight.scales.numpy()
    own = scale or _range(sample)
    out = _range(dense(sample))
    rows = len(scales)
    by_row = scales * np.float32(own.scale)
    bias = np.zeros(rows) if dense.bias is None else dense.bias.detach().numpy()
    constants: dict[str, Any] = {
        "x_scale": np.float32(own.scale), "x_zero": np.uint8(own.zero_point),
        "y_scale": np.float32(out.scale), "y_zero": np.uint8(out.zero_point),
        "w": weight.values.numpy(), "w_scale": scales, "w_zero": np.zeros(rows, np.int8),
        "b": np.rint(bias / by_row).clip(-(2**31), 2**31 - 1).astype(np.int32),
        "b_scale": by_row, "b_zero": np.zeros(rows, np.int32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=0),
        node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["bd"], axis=0),
        node(*_operator(dense)[:1], ["xd", "wd", "bd"], ["real"], **_operator(dense)[1]),
    ]
    if requantize:
        nodes += [
            node("QuantizeLinear", ["real", "y_scale", "y_zero"], ["yq"]),
            node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["y"]),
        ]
    else:
        nodes[-1].output[0] = "y"
    dims = [None] * (2 if isinstance(dense, nn.Linear) else dense.weight.dim())
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    return bytes(model.SerializeToString())


def _operator(dense: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(dense, nn.Linear):
        return "Gemm", {"transB": 1}
    if dense.padding_mode != "zeros" or isinstance(dense.padding, str):
        raise ValueError("expected a convolution with plain zeros around the image")
    return "Conv", {
        "kernel_shape": list(dense.kernel_size), "strides": list(dense.stride),
        "pads": [*dense.padding, *dense.padding], "dilations": list(dense.dilation),
        "group": dense.groups,
    }  # fmt: skip


def _rows(dense: nn.Module, x: Tensor) -> Any:
    x = x.detach().contiguous()
    return (x.reshape(-1, x.shape[-1]) if isinstance(dense, nn.Linear) else x).numpy()


def _range(x: Tensor) -> ActivationScale:
    low, high = torch.aminmax(x.detach())
    return scale_of_range(float(low), float(high))
