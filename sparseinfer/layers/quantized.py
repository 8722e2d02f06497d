"""Reads the weights of torch's quantized layers, which hold them behind methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["is_quantized", "quantized_weights"]

_PACKAGES = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torch.ao.nn.sparse.")


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a layer of torch's quantized packages that holds weights.

    Example:
        >>> is_quantized(nn.Linear(4, 4))
        False
    """
    return type(module).__module__.startswith(_PACKAGES) and _reader(module) is not None


def quantized_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a quantized layer by torch's names, as float32; none where it has no tensor.

    Example:
        >>> list(quantized_weights(nn.Linear(4, 4)))
        []
    """
    reader = _reader(module)
    if reader is not None:
        yield from _tensors("weight", reader())


def _reader(module: Any) -> Any:
    """The method that gives the weight: recurrent layers have one of another name."""
    for name in ("weight", "get_weight"):
        read = getattr(module, name, None)
        if callable(read) and not isinstance(read, Tensor):
            return read
    return None


def _tensors(name: str, found: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _tensors(key, value)
    elif isinstance(found, Tensor):
        yield name, found.dequantize() if found.is_quantized else found.float()
