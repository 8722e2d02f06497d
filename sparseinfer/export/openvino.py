"""A model as OpenVINO runs it, to time an engine against: where it is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparseinfer.export.onnxruntime import write_onnx

__all__ = ["openvino_call"]


def openvino_call(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    threads: int,
    precision: str = "f32",
) -> tuple[Callable[[], object], str]:
    """A call of the model by OpenVINO on these arguments, and why there is none if so.

    `precision` is its hint: `f32`, or `bf16`.

    Example:
        >>> import torch
        >>> call, why = openvino_call(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), {}, 1)
        >>> bool(why) or len(call()) == 1
        True
    """
    try:
        import openvino
    except ImportError:
        return lambda: None, "openvino is not installed"
    options = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        why = write_onnx(model, args, kwargs, path)
        if why:
            return lambda: None, why
        request = openvino.Core().compile_model(str(path), "CPU", options).create_infer_request()
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    for index, tensor in enumerate(tensors):
        request.set_input_tensor(index, openvino.Tensor(tensor.numpy(), shared_memory=True))
    outputs = range(len(request.model_outputs))

    def call() -> list[Any]:
        request.infer()
        return [request.get_output_tensor(index).data for index in outputs]

    return call, ""
