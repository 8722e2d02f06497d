"""A reference run of an ONNX model: by ONNX Runtime where it is installed, else by onnx itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Reference", "onnxruntime_session", "reference_of", "rounded_proto"]

Reference = Callable[[Mapping[str, Tensor]], list[Tensor]]
"""The outputs of a model on named inputs."""


def reference_of(proto: Any) -> tuple[Reference, str]:
    """What runs a model as it is, node by node, and the name of that.

    Raises:
        ValueError: neither runs the model.
    """
    session, why = onnxruntime_session(proto, 1, optimized=False)
    if session is not None:
        return _by_session(session, "ONNX Runtime"), "ONNX Runtime"
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(proto)
    # Of whatever it meets.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"expected a model that onnx's ReferenceEvaluator runs ({why}), got "
            f"{type(error).__name__}: {first}; try check=False"
        ) from error
    name = f"onnx's ReferenceEvaluator ({why})"
    return _by_session(evaluator, name), name


def _by_session(session: Any, name: str) -> Reference:
    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        feeds = {name: tensor.detach().contiguous().numpy() for name, tensor in inputs.items()}
        try:
            found = session.run(None, feeds)
        # Of whatever it meets.
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"expected a model that {name} runs, got {type(error).__name__}: {first}; try "
                "check=False"
            ) from error
        return [torch.as_tensor(one) for one in found]

    return run


def onnxruntime_session(proto: Any, threads: int, *, optimized: bool = True) -> tuple[Any, str]:
    """A session of ONNX Runtime on a model, or None and why there is none."""
    try:
        import onnxruntime
    except ImportError:
        return None, "onnxruntime is not installed"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    # Of whatever it meets: a model of more than 2 GB, an operator, a version.
    except Exception as error:
        return None, f"ONNX Runtime does not take it: {(str(error).splitlines() or [''])[0][:200]}"
    return session, ""


def rounded_proto(proto: Any) -> Any:
    """A copy of a model whose weights, of two dimensions or more, are rounded to bfloat16."""
    from onnx import TensorProto, numpy_helper

    copied = type(proto)()
    copied.CopyFrom(proto)
    attributes = (own for node in copied.graph.node for own in node.attribute)
    held = [own.t for own in attributes if own.HasField("t")]
    for tensor in (*copied.graph.initializer, *held):
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            whole = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            small = whole.to(torch.bfloat16).float().numpy()
            tensor.CopyFrom(numpy_helper.from_array(small, tensor.name))
    return copied
