"""to_dense: a converted model in, the same model out with torch's own layers."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparseinfer.convert.model_report import forget
from sparseinfer.convert.pretrained import forget_pretrained
from sparseinfer.convert.replace import HOOKS
from sparseinfer.layers.attention import SparseMultiheadAttention
from sparseinfer.layers.dense import CONV1D_MODULES
from sparseinfer.layers.linear_conv import SparseLayer, SparseLinear
from sparseinfer.layers.recurrent import SparseRecurrent
from sparseinfer.ops.memory import require_model_memory

__all__ = ["to_dense"]

_Sparse = SparseLayer | SparseRecurrent | SparseMultiheadAttention

_OF_SPARSE = frozenset({
    "weight_shape", "packed_shape", "groups", "activation", "computed_by", "_padding", "_axes",
    "_phases", "_typed", "_reads",
})  # fmt: skip
"""Attributes that a sparse layer has for itself; what else a dense one lacks is the user's."""


def to_dense(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Give a converted model back with torch's own layers, which compute the same.

    Every sparse layer, wherever nested, becomes the class that it was converted from: linear,
    convolution, transposed, recurrent, attention, and transformers' `Conv1D`. Values are those of
    the packed weight in the type of the layer's bias, on its device. Hooks, the training flag, the
    user's own attributes and shared modules and biases are kept; a weight takes gradients where the
    layer's bias does, or where it has none. A layer whose class computed its weight from a
    parameter (weight-standardised convolutions) becomes a plain one of the computed weight.
    Fine-tuning, adapters (peft) and exporters that know torch's layers only start from here.

    Args:
        model: a model that holds sparse layers, or a sparse layer.
        inplace: change `model` itself. Use the returned model: where `model` is itself a sparse
            layer, it is another object.

    Returns:
        The dense model: a copy, unless `inplace`.

    Raises:
        TypeError: `model` is not an nn.Module.
        ValueError: a packed weight is not valid.
        RuntimeError: the memory of a tensor was released.

    Example:
        >>> from sparseinfer import convert_to_sparse
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> to_dense(convert_to_sparse(model, min_speedup=0))
        Sequential(
          (0): Linear(in_features=8, out_features=4, bias=True)
          (1): ReLU()
        )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(model).__name__}; try the model that "
            "convert_to_sparse returned"
        )
    require_model_memory(model)
    result = model if inplace else _copied(model)
    # Errors come before anything is changed.
    found: dict[nn.Module, nn.Module] = {}
    for sparse in _outermost(result):
        found[sparse] = _dense(sparse)
    for layer, dense in found.items():
        for name, bias in _biases(layer, dense):  # which other layers may hold too
            owner, _, own = name.rpartition(".")
            dense.get_submodule(owner).register_parameter(own, bias)
        vars(dense).update({key: vars(layer)[key] for key in _carried(layer, dense)})
    for parent in list(result.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in found:
                parent._modules[name] = found[child]
    result = found.get(result, result)
    forget(result)
    forget_pretrained(result)
    _restore_fast_paths(result, set(found.values()))
    return result


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, NotImplementedError) as refusal:
        raise TypeError(
            f"expected a model that copy.deepcopy can copy, got {type(refusal).__name__}: "
            f"{refusal}; try to_dense(model, inplace=True)"
        ) from refusal


def _outermost(model: nn.Module) -> list[_Sparse]:
    """The sparse layers that are no part of another: an attention's projections are."""
    layers: list[_Sparse] = []
    inner: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, _Sparse) and module not in inner:
            layers.append(module)
            inner.update(module.modules())
    return layers


def _dense(layer: _Sparse) -> nn.Module:
    dense: Any = layer.to_dense()
    if isinstance(layer, SparseLinear) and "nf" in vars(layer) and isinstance(dense, nn.Linear):
        dense = _conv1d(layer, dense)
    biases = [bias for _, bias in _biases(layer, dense)]
    for own in dense.parameters():
        if biases:  # half() and the like reach the biases only
            own.data = own.data.to(biases[0].dtype)
        own.requires_grad_(all(bias.requires_grad for bias in biases))
    return dense.train(layer.training)


def _conv1d(layer: SparseLinear, linear: nn.Linear) -> nn.Module:
    """transformers' own layer, which holds its weight transposed."""
    conv1d = importlib.import_module(CONV1D_MODULES[0]).Conv1D
    with torch.device("meta"):
        dense: nn.Module = conv1d(layer.out_features, layer.in_features)
    dense.register_parameter("weight", nn.Parameter(linear.weight.detach().t().contiguous()))
    dense.register_parameter("bias", linear.bias)
    return dense


def _biases(layer: nn.Module, dense: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The biases that `layer` and its dense counterpart both hold as parameters, by the name that
    they have in the dense one."""
    for name, _ in dense.named_parameters():
        held: Any = layer
        kind, _, part = name.partition("_")
        if isinstance(layer, SparseRecurrent):
            held, name_in = layer._modules.get(part), kind
        elif name == "in_proj_bias":
            held, name_in = layer._modules.get("in_proj"), "bias"
        else:
            owner, _, name_in = name.removeprefix("0.").rpartition(".")
            held = layer.get_submodule(owner)
        bias = None if held is None else held._parameters.get(name_in)
        if bias is not None and name_in != "weight":
            yield name, bias


def _carried(layer: nn.Module, dense: nn.Module) -> list[str]:
    """Names of the attributes that a dense layer takes over: hooks, and those it lacks."""
    return [
        key for key in vars(layer)
        if key in HOOKS or (key not in vars(dense) and key not in _OF_SPARSE)
    ]  # fmt: skip


def _restore_fast_paths(model: nn.Module, dense: set[nn.Module]) -> None:
    """Set the switches of torch's transformer layers, which a conversion turned off, as torch's own
    constructors set them."""
    holders = [module for module in model.modules() if not dense.isdisjoint(module.modules())]
    for layer in holders:
        if isinstance(layer, nn.TransformerEncoderLayer):
            if layer.activation is F.relu or isinstance(layer.activation, nn.ReLU):
                layer.activation_relu_or_gelu = 1
            elif layer.activation is F.gelu or isinstance(layer.activation, nn.GELU):
                layer.activation_relu_or_gelu = 2
    for encoder in holders:  # which asks its first layer
        if isinstance(encoder, nn.TransformerEncoder):
            first: Any = encoder.layers[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of why a layer has no fast path
                like = nn.TransformerEncoder(first, 0, None, encoder.enable_nested_tensor)
            encoder.use_nested_tensor = like.use_nested_tensor
