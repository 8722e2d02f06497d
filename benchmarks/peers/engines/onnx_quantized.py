"""An int8 layer as an ONNX model: the operator between QuantizeLinear and DequantizeLinear.

Engines find the pattern and put their integer kernels in its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.peers.engines.interface import Array, Layer
from benchmarks.peers.engines.onnx_layer import INPUT, IR_VERSION, OPSET, OUTPUT

TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}

TO_CHANNELS_FIRST = (0, 3, 1, 2)
TO_CHANNELS_LAST = (0, 2, 3, 1)


def is_channels_last(layer: Layer) -> bool:
    """Return whether images are handed over channels-last: not those of float32."""
    return layer.op == "conv" and layer.io != "float32"


def channels_last(layer: Layer) -> tuple[Array, tuple[int, ...]]:
    """Return the model's x, and the shape of its y."""
    if not is_channels_last(layer):
        return layer.x, layer.out_shape
    shape = tuple(layer.out_shape[axis] for axis in TO_CHANNELS_LAST)
    return np.ascontiguousarray(layer.x.transpose(TO_CHANNELS_LAST)), shape


def channels_first(y: Array) -> Array:
    """Return a channels-last y as `Layer.out_shape` has it."""
    return np.ascontiguousarray(y.transpose(TO_CHANNELS_FIRST))


def _operator(layer: Layer, inputs: list[str], output: str) -> NodeProto:
    if layer.op == "linear":
        return helper.make_node("Gemm", inputs, [output], transB=1)
    return helper.make_node(
        "Conv", inputs, [output], kernel_shape=list(layer.weight.shape[2:]),
        strides=[layer.stride] * 2, pads=[layer.padding] * 4,
    )  # fmt: skip


def quantized_model(layer: Layer, *, requantize: bool) -> ModelProto:
    """Return the model; ``requantize`` rounds a float32 y to uint8 on its way too."""
    scales = layer.quantized
    m = layer.weight.shape[0]
    constants: dict[str, Any] = {
        "x_scale": np.float32(scales.x_scale), "x_zero": np.uint8(scales.x_zero),
        "y_scale": np.float32(scales.y_scale), "y_zero": np.uint8(scales.y_zero),
        "weight_scales": scales.weight_scales, "weight_zeros": np.zeros(m, np.int8),
        "bias_scales": scales.bias_scales, "bias_zeros": np.zeros(m, np.int32),
        "weight": np.ascontiguousarray(layer.weight), "bias": layer.bias,
    }  # fmt: skip
    nodes: list[NodeProto] = []

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    name = INPUT
    if layer.io == "float32":
        name = add("QuantizeLinear", name, "x_scale", "x_zero")
    name = add("DequantizeLinear", name, "x_scale", "x_zero")
    if is_channels_last(layer):
        name = add("Transpose", name, perm=TO_CHANNELS_FIRST)
    weight = add("DequantizeLinear", "weight", "weight_scales", "weight_zeros", axis=0)
    bias = add("DequantizeLinear", "bias", "bias_scales", "bias_zeros", axis=0)
    nodes.append(_operator(layer, [name, weight, bias], "real"))
    name = "real"
    if is_channels_last(layer):
        name = add("Transpose", name, perm=TO_CHANNELS_LAST)
    if requantize or layer.io == "uint8":
        name = add("QuantizeLinear", name, "y_scale", "y_zero")
    if requantize and layer.io == "float32":
        add("DequantizeLinear", name, "y_scale", "y_zero")
    nodes[-1].output[0] = OUTPUT
    x, y_shape = channels_last(layer)
    kind = TYPES[layer.io]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(INPUT, kind, list(x.shape))],
        [helper.make_tensor_value_info(OUTPUT, kind, list(y_shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
