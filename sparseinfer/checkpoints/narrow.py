"""Weights that a file holds narrower than the model: its layers, packed as they were saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sparseinfer.checkpoints.load_converted import empty_layers
from sparseinfer.checkpoints.packed import OF_INPUTS
from sparseinfer.convert.replace import Replacement
from sparseinfer.formats.handles import Handle
from sparseinfer.layers.base import SparseLayer
from sparseinfer.layers.projections import Projection
from sparseinfer.layers.quantized_input import DENSE_KERNEL, NAMES

__all__ = ["beside", "narrow_layers", "narrower_than", "of_quantizer"]


def narrower_than(own: Mapping[str, Any]) -> Callable[[str, Handle], bool]:
    """Whether a packed weight has fewer bits than that of a model with these tensors, or rounds
    what it multiplies; or the model has it packed too.

    Example:
        >>> import torch
        >>> from sparseinfer import pack
        >>> from sparseinfer.formats.handles import open_packed
        >>> handle = open_packed(pack(torch.eye(2), weights="int8"))
        >>> narrower_than({"fc.weight": torch.eye(2)})("fc.weight", handle)
        True
    """

    def keep(name: str, handle: Handle) -> bool:
        if handle.activations != "float32" or f"{name.removesuffix('weight')}packed" in own:
            return True
        weight = own.get(name)
        return isinstance(weight, Tensor) and handle.dtype.itemsize < weight.dtype.itemsize

    return keep


def beside(packed: str) -> list[str]:
    """The names that may stand beside a packed weight: the scale of its layer's input, its kernel.

    Example:
        >>> beside("fc.packed")
        ['fc.input_scale', 'fc.input_zero_point', 'fc.dense_kernel']
    """
    prefix = packed.removesuffix("packed")
    return [f"{prefix}{name}" for name in OF_INPUTS]


def narrow_layers(
    model: nn.Module, state: Mapping[str, Any], packed: Collection[str]
) -> tuple[dict[nn.Module, Replacement], set[str]]:
    """Sparse layers of those tensors of `state` that are `packed`, for dense ones of `model`, and
    the names of those that found a place.

    Raises:
        ValueError: a packed weight is not valid or of another shape, or a scale is none.

    Example:
        >>> import torch
        >>> from sparseinfer import pack
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> state = {"0.packed": pack(torch.eye(2), weights="int8")}
        >>> narrow_layers(model, state, ["0.packed"])[1]
        {'0.packed'}
    """
    layers = empty_layers(model, packed)
    placed = set()
    for name, layer in _places(model, layers):
        prefix = f"{name}." if name else ""
        if f"{prefix}packed" not in packed:
            continue
        errors: list[str] = []
        try:
            layer.adopt_packed(state[f"{prefix}packed"])
            layer.make_room(dict(state), prefix, errors)
            layer.round_input(layer.activation_scale)
        except ValueError as error:
            errors.append(f"While loading {prefix}packed: {error}")
        if errors:
            raise ValueError(errors[0])
        placed.add(f"{prefix}packed")
    return layers, placed


def _places(
    model: nn.Module, layers: Mapping[nn.Module, Replacement]
) -> Iterator[tuple[str, SparseLayer]]:
    """The packed layers among replacements, by the names that they will have in the model."""
    parts: dict[nn.Module, list[tuple[str, SparseLayer]]] = {}
    for dense, replacement in layers.items():
        if isinstance(dense, Projection):
            found = [(dense.role, replacement)]
        else:
            found = list(replacement.named_modules())
        own = [(name, layer) for name, layer in found if isinstance(layer, SparseLayer)]
        parts.setdefault(dense.owner if isinstance(dense, Projection) else dense, []).extend(own)
    for name, module in model.named_modules(remove_duplicate=False):
        for role, layer in parts.get(module, []):
            yield ".".join(part for part in (name, role) if part), layer


def of_quantizer(tensors: Mapping[str, Tensor], packed: Collection[str]) -> dict[str, Any]:
    """What `sparseinfer.checkpoints.hf_quantizer` has to know of these packed weights.

    Example:
        >>> import torch
        >>> of_quantizer({"fc.packed": torch.zeros(64, dtype=torch.uint8)}, ["fc.packed"])
        {'packed': {'fc.packed': 64}, 'input_scales': {}, 'dense_kernels': []}
    """
    scales, kernels = {}, []
    for name in packed:
        prefix = name.removesuffix("packed")
        if all(f"{prefix}{own}" in tensors for own in NAMES):
            scale, zero_point = (tensors[f"{prefix}{own}"] for own in NAMES)
            scales[name] = [float(scale), int(zero_point)]
        if f"{prefix}{DENSE_KERNEL}" in tensors:
            kernels.append(name)
    return {
        "packed": {name: tensors[name].numel() for name in packed},
        "input_scales": scales,
        "dense_kernels": kernels,
    }
