"""A model as OpenVINO runs it, to time an engine against: where it is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparseinfer.export.onnxruntime import write_onnx

__all__ = ["openvino_call", "openvino_runs"]


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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        why = write_onnx(model, args, kwargs, path)
        if why:
            return lambda: None, why
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return openvino_runs(str(path), tensors, threads, precision)


def openvino_runs(
    model: str | bytes, tensors: Sequence[Tensor], threads: int, precision: str = "f32"
) -> tuple[Callable[[], object], str]:
    """A call of an ONNX model, a path or bytes, by OpenVINO, and why there is none if so."""
    try:
        import openvino
    except ImportError:
        return lambda: None, "openvino is not installed"
    options = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    core = openvino.Core()
    try:
        request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    except RuntimeError as error:
        return lambda: None, f"OpenVINO does not take it: {(str(error).splitlines() or [''])[0]}"
    for index, tensor in enumerate(tensors):
        request.set_input_tensor(index, openvino.Tensor(tensor.numpy(), shared_memory=True))
    outputs = range(len(request.model_outputs))

    def call() -> list[Any]:
        request.infer()
        return [request.get_output_tensor(index).data for index in outputs]

    return call, ""
