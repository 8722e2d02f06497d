"""Takes masks that other pruning tools attached to a module off it, and keeps what they pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["carried_mask", "make_plain", "stored_parameter"]


def stored_parameter(module: nn.Module, attribute: str) -> tuple[str, nn.Parameter] | None:
    """The parameter that a weight is, or is computed from, and its name within the module.

    None where a hook computes it, or several parameters together.

    Example:
        >>> from torch.nn.utils import prune
        >>> stored_parameter(prune.identity(nn.Linear(2, 2), "weight"), "weight")[0]
        'weight_orig'
    """
    for name in (f"{attribute}_orig", attribute):
        parameter = module._parameters.get(name)
        if parameter is not None and (name == attribute or f"{attribute}_mask" in module._buffers):
            return name, parameter
    if parametrize.is_parametrized(module, attribute):
        original = _parametrizations(module, attribute)._parameters.get("original")
        if original is not None:
            return f"parametrizations.{attribute}.original", original
    return None


@torch.no_grad()
def carried_mask(module: nn.Module, attribute: str, name: str) -> Tensor | None:
    """Return the mask, True = kept, that a weight carries; None for a plain parameter.

    Understands `weight_orig` with `weight_mask` (torch.nn.utils.prune), `weight` with `weight_mask`
    (NNI), and parametrizations that hold a mask each and do nothing but zero weights
    (torch.ao.pruning): what they zero is asked of themselves, so a mask has the shape and the
    meaning that its owner gives it. A `weight_mask` may broadcast to the weight's shape; beside
    `weight`, where nothing here multiplies the two, [M] is one element an output row.

    `name` is the weight's full name, for messages.

    Raises:
        ValueError: the weight is computed in another way (weight_norm, spectral_norm, ...), or a
            mask does not fit the weight's shape in one way only; the message gives the shapes.

    Example:
        >>> from torch.nn.utils import prune
        >>> layer = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=12)
        >>> int(carried_mask(layer, "weight", "layer.weight").sum())
        4
    """
    stored = stored_parameter(module, attribute)
    mask = module._buffers.get(f"{attribute}_mask")
    if stored is not None and stored[0] == f"{attribute}_orig" and mask is not None:
        return _multiplied(mask, stored[1].shape, name)
    if stored is not None and stored[0] == attribute:
        return None if mask is None else _beside(mask, stored[1].shape, name)
    if not parametrize.is_parametrized(module, attribute):
        raise _computed(name, "a hook", "torch.nn.utils.remove_weight_norm")
    items = list(_parametrizations(module, attribute))
    if stored is None or not all(map(_masks_of, items)):
        kinds = ", ".join(type(item).__name__ for item in items)
        raise _computed(name, kinds, "torch.nn.utils.parametrize.remove_parametrizations")
    return _zeroed_by(items, stored[1], name)


@torch.no_grad()
def make_plain(module: nn.Module, attribute: str, kept: Tensor) -> None:
    """Make a weight that carries the mask `kept` a plain parameter, the same object as before.

    Masks of torch.nn.utils.prune and parametrizations are taken off. A `weight_mask` beside a plain
    `weight` stays, for hooks that read it.

    Example:
        >>> from torch.nn.utils import prune
        >>> layer = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=12)
        >>> make_plain(layer, "weight", carried_mask(layer, "weight", "layer.weight"))
        >>> list(layer.state_dict())
        ['bias', 'weight']
    """
    if parametrize.is_parametrized(module, attribute):
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
    original = module._parameters.get(f"{attribute}_orig")
    mask = module._buffers.get(f"{attribute}_mask")
    if original is not None and mask is not None:
        # torch's own `remove` needs its hook, which a copy or a pickle may have lost.
        for key, hook in list(module._forward_pre_hooks.items()):
            if getattr(hook, "_tensor_name", None) == attribute:
                del module._forward_pre_hooks[key]
        original.data = original.detach() * mask.to(original.dtype)
        module.__dict__.pop(attribute, None)
        del module._parameters[f"{attribute}_orig"]
        del module._buffers[f"{attribute}_mask"]
        setattr(module, attribute, original)
    # Zero times NaN or Inf is NaN.
    module.get_parameter(attribute).masked_fill_(~kept, 0.0)


def _parametrizations(module: nn.Module, attribute: str) -> Any:
    lists: Any = module.parametrizations
    return lists[attribute]


def _multiplied(mask: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The kept weights by a mask that torch multiplies the weight with."""
    try:
        return (mask != 0).expand(shape).contiguous()
    except RuntimeError as error:
        raise _unfitting(mask, shape, name) from error


def _beside(mask: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The kept weights by a mask that no code here applies: only one reading may be possible."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"expected zeros and ones in the mask of {name!r}, got other values, "
            "try removing the buffer, or ignore this layer"
        )
    if mask.dim() == 1 and len(shape) > 1:
        # In a square matrix, one element a row would be read as one a column when multiplied.
        if len(mask) != shape[0] or shape[0] == shape[-1]:
            raise _unfitting(mask, shape, name)
        mask = mask.view(-1, *[1] * (len(shape) - 1))
    if mask.dim() != len(shape):
        raise _unfitting(mask, shape, name)
    return _multiplied(mask, shape, name)


def _masks_of(item: nn.Module) -> list[Tensor]:
    """The tensors that a parametrization holds as masks, by their names."""
    held = [*item.named_buffers(), *item.named_parameters(), *vars(item).items()]
    return [value for key, value in held if "mask" in key and isinstance(value, Tensor)]


def _zeroed_by(items: Sequence[nn.Module], weight: Tensor, name: str) -> Tensor:
    """What parametrizations keep of a weight, asked of themselves; they may do nothing else."""
    # Distinct values of both signs tell a mask from what moves, clips or mixes weights.
    generator = torch.Generator().manual_seed(0)
    numbers = 100.0 * torch.randn(weight.shape, generator=generator)
    probes = torch.ones_like(weight), numbers.to(weight)
    masks = [mask for item in items for mask in _masks_of(item)]
    try:
        ones, mixed = (_apply(items, probe) for probe in probes)
    except Exception as error:
        raise _unfitting(masks[0], weight.shape, name) from error
    if ones.shape != weight.shape:
        raise _unfitting(masks[0], weight.shape, name)
    kept = ones != 0
    for probe, result in zip(probes, (ones, mixed), strict=True):
        if not torch.equal(result, probe.masked_fill(~kept, 0.0)):
            kinds = ", ".join(type(item).__name__ for item in items)
            shapes = ", ".join(str(tuple(mask.shape)) for mask in masks)
            raise ValueError(
                f"expected the masks of {name!r}, {tuple(weight.shape)}, to zero weights and do "
                f"nothing else, got {kinds} with masks of shape {shapes}, try removing them, or "
                "ignore this layer"
            )
    return kept


def _apply(items: Sequence[nn.Module], weight: Tensor) -> Tensor:
    for item in items:
        weight = item(weight)
    return weight


def _computed(name: str, by: str, removal: str) -> ValueError:
    return ValueError(
        f"expected {name!r} to be a plain parameter or a masked one, got one computed by {by}, try "
        f"removing that first (weight_norm: {removal}), or ignore this layer"
    )


def _unfitting(mask: Tensor, shape: torch.Size, name: str) -> ValueError:
    return ValueError(
        f"expected a mask of the shape of {name!r}, {tuple(shape)}, or of one element a row, "
        f"{(shape[0], *[1] * (len(shape) - 1))}, got one of {tuple(mask.shape)}, "
        "try expanding the mask to the weight's shape"
    )
