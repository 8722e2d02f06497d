"""A layer as an ONNX model with a constant weight, the zeros inside."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.peers.engines.interface import Layer

INPUT = "x"
OUTPUT = "y"

# Read by every release of the engines that is in use.
OPSET = 13
IR_VERSION = 8


def make_model(layer: Layer) -> ModelProto:
    """Return the model: ``Gemm`` with W as PyTorch's exporter writes it, or ``Conv``."""
    if layer.op == "linear":
        node = helper.make_node("Gemm", [INPUT, "weight", "bias"], [OUTPUT], transB=1)
    else:
        node = helper.make_node(
            "Conv", [INPUT, "weight", "bias"], [OUTPUT],
            kernel_shape=list(layer.weight.shape[2:]), strides=[layer.stride] * 2,
            pads=[layer.padding] * 4,
        )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, list(layer.x.shape))],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, list(layer.out_shape))],
        [
            numpy_helper.from_array(layer.weight, "weight"),
            numpy_helper.from_array(layer.bias, "bias"),
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
