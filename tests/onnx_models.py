"""Small ONNX models of a few nodes, for tests, and engines of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from sparseinfer.export.compile import compile

__all__ = ["check", "onnx_model", "ops", "quick"]


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


def quick(model: Any, example: Any = None, **options: Any) -> Any:
    """An engine that nobody timed."""
    return compile(model, example, baselines=(), **options)


def ops(engine: Any) -> list[str]:
    return [found["op"] for found in engine.report().nodes if found["runs"]]


def check(model: Any, x: Tensor) -> Any:
    """Against onnx's own evaluator, which `compile` did not compare with."""
    from onnx.reference import ReferenceEvaluator

    engine = quick(model, x)
    assert "ONNX Runtime" in engine.report().error
    found = engine(x)
    expected = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    for y, own in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert y.shape == own.shape and torch.allclose(y, torch.as_tensor(own), atol=1e-5)
    return engine
