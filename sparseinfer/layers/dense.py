"""What a dense layer computes with: its weight and bias, whatever pruning wrapped around."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from sparseinfer.formats.torch_sparse import densified
from sparseinfer.layers.adapters import adapter_of
from sparseinfer.layers.hooks import touching_hook

__all__ = [
    "CONV1D", "by_outputs", "class_named", "computed_weight", "effective", "ends_of", "matrices",
    "owned_parameters", "take_masked", "unusual_tensors",
]  # fmt: skip

CONV1D = ("transformers.pytorch_utils.Conv1D", "transformers.modeling_utils.Conv1D")
"""transformers' linear layer whose weight is transposed: where it is now, and before 4.19."""


def effective(layer: nn.Module, name: str) -> Tensor | None:
    """The tensor that `layer` computes with as its `weight` or `bias`; None where it has none.

    Reads `<name>_orig * <name>_mask` of `torch.nn.utils.prune` (the mask's hook present or not) and
    `torch.nn.utils.parametrize` parametrizations, those of `torch.ao.pruning` among them. A mask
    beside a plain `<name>` counts where a hook of the layer's applies it. A sparse tensor of
    torch's is read as the dense one that it stands for.

    Raises:
        ValueError: the tensor is computed by a hook (weight_norm, spectral_norm) and cannot be
            read, it belongs to a lazy layer that has not run yet, or it is a sparse one that torch
            cannot read on its device.

    Example:
        >>> from torch.nn.utils import prune
        >>> layer = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=8)
        >>> int((effective(layer, "weight") == 0).sum())
        8
    """
    with torch.no_grad():
        if parametrize.is_parametrized(layer, name):
            return getattr(layer, name).detach()
        if f"{name}_orig" in layer._parameters and f"{name}_mask" in layer._buffers:
            original, mask = layer.get_parameter(f"{name}_orig"), layer.get_buffer(f"{name}_mask")
            return (original * mask.to(original.dtype)).detach()
        if name in layer._parameters or name in layer._buffers:
            # Scripted modules have mappings without get().
            held: Any = layer._parameters if name in layer._parameters else layer._buffers
            tensor = held[name]
            masked = tensor is not None and f"{name}_mask" in layer._buffers
            if masked and touching_hook(layer):
                return (tensor * layer.get_buffer(f"{name}_mask").to(tensor.dtype)).detach()
            if isinstance(tensor, UninitializedParameter):
                raise ValueError(
                    f"expected {name} to have a shape, got an uninitialized parameter; try running "
                    "the model once before the conversion"
                )
            return None if tensor is None else densified(tensor).detach()
    raise ValueError(
        f"expected {name} to be a parameter, masked or parametrized, got one computed by a hook; "
        f"try removing the hook (for weight_norm: torch.nn.utils.remove_weight_norm)"
    )


def computed_weight(layer: nn.Module) -> Tensor | None:
    """The weight that `layer` multiplies by: `effective`, after what a known class makes of it.

    Example:
        >>> computed_weight(nn.Linear(4, 8)).shape
        torch.Size([8, 4])
    """
    weight, adapter = effective(layer, "weight"), adapter_of(layer)
    if weight is None or adapter is None or adapter.weight is None:
        return weight
    with torch.no_grad():
        return adapter.weight(layer, weight).detach()


def ends_of(layer: nn.Module) -> tuple[int, ...] | str | None:
    """The zeros that a convolution puts around its input before its own padding, see `Adapter`.

    Example:
        >>> ends_of(nn.Conv2d(4, 4, 3, padding=1)) is None
        True
    """
    adapter = adapter_of(layer)
    if adapter is not None:
        return None if adapter.ends is None else adapter.ends(layer)
    # A sparse layer has it too; in any other layer of torch's it is the user's own attribute.
    return None if isinstance(layer, nn.Conv2d) else getattr(layer, "ends", None)


def take_masked(entries: dict[str, Any], prefix: str, name: str) -> Tensor | None:
    """Take `<name>_orig` and `<name>_mask` out of a state_dict; their product, or None.

    Example:
        >>> entries = {"weight_orig": torch.ones(2), "weight_mask": torch.tensor([0.0, 1.0])}
        >>> take_masked(entries, "", "weight"), entries
        (tensor([0., 1.]), {})
    """
    keys = f"{prefix}{name}_orig", f"{prefix}{name}_mask"
    if not all(isinstance(entries.get(key), Tensor) for key in keys):
        return None
    original, mask = (entries.pop(key) for key in keys)
    return (original * mask.to(original.dtype)).detach()


def by_outputs(layer: Any, weight: Tensor) -> Tensor:
    """A weight of `layer` with output rows first: a transposed convolution has the inputs first.

    Example:
        >>> layer = nn.ConvTranspose1d(4, 6, 3, groups=2)
        >>> layer.weight.shape, by_outputs(layer, layer.weight).shape
        (torch.Size([4, 3, 3]), torch.Size([6, 2, 3]))
    """
    if not getattr(layer, "transposed", False):
        return weight
    return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)


def class_named(layer: nn.Module, names: Collection[str]) -> type[nn.Module] | None:
    """The class with one of these qualified names that `layer` is of or inherits from; or None.

    Example:
        >>> class_named(nn.Conv1d(4, 4, 1), CONV1D) is None
        True
    """
    return next(
        (cls for cls in type(layer).__mro__ if f"{cls.__module__}.{cls.__qualname__}" in names),
        None,
    )


def matrices(layer: nn.Module) -> list[str]:
    """Names of the layer's own parameters of two and more dimensions that `effective` can read.

    Example:
        >>> matrices(nn.LSTMCell(4, 4))
        ['weight_ih', 'weight_hh']
    """
    names = [
        name.removesuffix("_orig")
        if f"{name.removesuffix('_orig')}_mask" in layer._buffers
        else name
        for name, parameter in layer._parameters.items()
        if not (parameter is None or isinstance(parameter, UninitializedParameter))
        and parameter.dim() >= 2
    ]
    if parametrize.is_parametrized(layer):
        parametrizations: Any = layer.parametrizations
        names += [name for name in parametrizations if getattr(layer, name).dim() >= 2]
    return names


def owned_parameters(layer: nn.Module, name: str) -> list[nn.Parameter]:
    """The Parameters behind `effective(layer, name)`: more than one for some parametrizations.

    A buffer that takes a Parameter's place is given for it.

    Example:
        >>> len(owned_parameters(nn.Linear(4, 4), "weight"))
        1
    """
    if parametrize.is_parametrized(layer, name):
        parametrizations: Any = layer.parametrizations
        return list(parametrizations[name].parameters())
    found: Any = (
        layer._parameters.get(name, layer._buffers.get(name)),
        layer._parameters.get(f"{name}_orig"),
    )
    return [parameter for parameter in found if parameter is not None]


def unusual_tensors(layer: nn.Module, usual: Sequence[str] = ("weight", "bias")) -> list[str]:
    """Names of parameters, buffers and children that a plain layer of this kind does not have.

    `usual` are those that it has; masked ones count as the tensors that they stand for.

    Example:
        >>> unusual_tensors(nn.Linear(4, 4))
        []
    """
    known = {f"{name}{end}" for name in usual for end in ("", "_orig", "_mask")}
    names = (*layer._parameters, *layer._buffers, *layer._modules)
    return [name for name in names if name not in known and name != "parametrizations"]
