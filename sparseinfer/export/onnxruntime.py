"""A model as ONNX Runtime runs it, to time an engine against: where it is installed."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["onnxruntime_call", "write_onnx"]


def onnxruntime_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int
) -> tuple[Callable[[], object], str]:
    """A call of the model by ONNX Runtime on these arguments, and why there is none if so.

    Example:
        >>> call, why = onnxruntime_call(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), {}, 1)
        >>> bool(why) or len(call()) == 1
        True
    """
    try:
        import onnxruntime
    except ImportError:
        return lambda: None, "onnxruntime is not installed"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        why = write_onnx(model, args, kwargs, path)
        if why:
            return lambda: None, why
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    names = [own.name for own in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return lambda: session.run(None, feeds), ""


def write_onnx(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> str:
    """Write a model as ONNX; what it gives back says why it could not be, where it could not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(model, args, path, kwargs=kwargs, dynamo=False)
        except Exception as error:  # of whatever the exporter meets
            return f"torch could not export the model: {error}"
    return ""
