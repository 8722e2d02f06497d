"""A layer as an ONNX model with a constant weight, the zeros inside."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

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
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    # In place: a weight given to make_graph is copied by it, and again by make_model.
    for name, array in (("weight", layer.weight), ("bias", layer.bias)):
        constant = model.graph.initializer.add(
            name=name, data_type=TensorProto.FLOAT, dims=array.shape
        )
        constant.raw_data = array.tobytes()
    return model
