"""to_dense: a converted model in, the same model out with torch's own layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from sparseinfer.convert.model_report import forget
from sparseinfer.convert.pretrained import forget_pretrained
from sparseinfer.convert.replace import HOOKS
from sparseinfer.layers.fast_paths import restore_fast_paths
from sparseinfer.layers.kinds import kind_of_sparse
from sparseinfer.ops.memory import require_model_memory

__all__ = ["to_dense"]

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
    restore_fast_paths(result, set(found.values()))
    return result


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, NotImplementedError) as refusal:
        raise TypeError(
            f"expected a model that copy.deepcopy can copy, got {type(refusal).__name__}: "
            f"{refusal}; try to_dense(model, inplace=True)"
        ) from refusal


def _outermost(model: nn.Module) -> list[Any]:
    """The sparse layers that are no part of another: an attention's projections are."""
    layers: list[nn.Module] = []
    inner: set[nn.Module] = set()
    for module in model.modules():
        if module not in inner and kind_of_sparse(module) is not None:
            layers.append(module)
            inner.update(module.modules())
    return layers


def _dense(layer: Any) -> nn.Module:
    dense: nn.Module = layer.original()
    biases = [bias for _, bias in _biases(layer, dense)]
    for own in dense.parameters():
        if biases:  # half() and the like reach the biases only
            own.data = own.data.to(biases[0].dtype)
        own.requires_grad_(all(bias.requires_grad for bias in biases))
    return dense.train(layer.training)


def _biases(layer: Any, dense: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The biases that `layer` and its dense counterpart both hold as parameters, by the name that
    they have in the dense one."""
    renames = layer.renames(layer)
    for name, _ in dense.named_parameters():
        own = name.removeprefix("0.")  # of a layer that an activation follows
        owner, _, name_in = renames.get(own, own).rpartition(".")
        bias = layer.get_submodule(owner)._parameters.get(name_in)
        if bias is not None and name_in != "weight":
            yield name, bias


def _carried(layer: nn.Module, dense: nn.Module) -> list[str]:
    """Names of the attributes that a dense layer takes over: hooks, and those it lacks."""
    return [
        key for key in vars(layer)
        if key in HOOKS or (key not in vars(dense) and key not in _OF_SPARSE)
    ]  # fmt: skip
