"""Small ONNX models of a few nodes, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["onnx_model"]


def onnx_model(
    nodes: Sequence[Any],
    constants: Mapping[str, Any] | None = None,
    shape: Sequence[int | str] | None = (1, 4),
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    functions: Sequence[Any] = (),
) -> onnx.ModelProto:
    """A model of these nodes, that reads `x`; functions are of the domain `own`."""
    info = helper.make_tensor_value_info
    tensors = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants or {}).items()
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [info("x", TensorProto.FLOAT, shape)],
        [info(name, TensorProto.FLOAT, None) for name in outputs],
        tensors,
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1),
               helper.make_opsetid("com.microsoft", 1)]  # fmt: skip
    return helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=8)
