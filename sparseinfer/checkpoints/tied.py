"""Tensors that a model ties together, and files that hold one of them for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["with_tied"]


def with_tied(model: nn.Module, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state_dict, with those that are there once for all that the model ties.

    safetensors' `save_model` and transformers' `save_pretrained` write tied tensors so. A packed
    weight stands for the packed weights of the layers whose weights are tied to its layer's.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> model[1].weight = model[0].weight
        >>> list(with_tied(model, {"0.weight": model[0].weight}))
        ['0.weight', '1.weight']
    """
    result = dict(entries)
    for names in _tied(model):
        _complete(result, names)
        layers = [name.removesuffix("weight") for name in names if name.endswith("weight")]
        if not any(name in result for name in names):
            _complete(result, [f"{layer}packed" for layer in layers])
    return result


def _complete(entries: dict[str, Any], names: list[str]) -> None:
    there = [name for name in names if name in entries]
    if there:
        for name in names:
            entries.setdefault(name, entries[there[0]])


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each tensor that has several."""
    found: dict[object, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            # On the meta device a tied tensor is known by itself alone.
            known = id(tensor) if tensor.is_meta or not tensor.numel() else _memory(tensor)
            found.setdefault(known, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _memory(tensor: Tensor) -> object:
    try:
        return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    # Sparse tensors and those of subclasses have no address.
    except RuntimeError:
        return id(tensor)
