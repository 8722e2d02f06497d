"""Masks that other tools save beside their weights: which tensor is a mask, and of which weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.tensors import is_plain

__all__ = [
    "fitted",
    "is_mask_of",
    "masks_beside",
    "note_of_mask",
    "refuse_masks_alone",
    "weight_of",
]

_KEYS = ("mask", "masks", "mask_dict", "masks_dict", "pruning_masks", "weight_masks", "nni_masks")
"""Keys under which a checkpoint holds masks beside its state_dict."""


def weight_of(key: str) -> str | None:
    """The name of the weight that a tensor of this name would be the mask of.

    Example:
        >>> weight_of("fc.weight_mask"), weight_of("fc.mask"), weight_of("fc.weight")
        ('fc.weight', 'fc.weight', None)
    """
    if key.endswith("_mask"):
        return key.removesuffix("_mask")
    layer, dot, last = key.rpartition(".")
    return f"{layer}{dot}weight" if last == "mask" else None


def is_mask_of(mask: Any, weight: Any) -> bool:
    """Whether a tensor is a mask of another: of its shape, of zeros and ones, ones for what stays.

    Example:
        >>> is_mask_of(torch.eye(2), torch.ones(2, 2)), is_mask_of(torch.ones(2), torch.ones(2, 2))
        (True, False)
    """
    if not isinstance(mask, Tensor) or not isinstance(weight, Tensor):
        return False
    if not (is_plain(mask) and is_plain(weight)) or mask.shape != weight.shape or not mask.numel():
        return False
    if not weight.is_floating_point() or mask.is_complex():
        return False
    kept = mask != 0
    if not bool(((mask == 1) | ~kept).all()):
        return False
    # Where nothing but what it drops is there, ones stand for what is dropped.
    left = weight.detach() != 0
    return not bool(left.any()) or bool((left & kept).any())


def masks_beside(root: Any, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The masks in a checkpoint's own dict of them, by their weights' names; what fits none.

    Understood are `{weight: mask}` and NNI's `{layer: {"weight": mask, "bias": mask}}`.

    Example:
        >>> state = {"fc.weight": torch.ones(1, 2)}
        >>> mask = torch.tensor([[0.0, 1.0]])
        >>> masks_beside({"state_dict": state, "masks": {"fc": {"weight": mask}}}, state)
        ({'fc.weight': tensor([[0., 1.]])}, [])
    """
    found: dict[str, Tensor] = {}
    notes: list[str] = []
    if not isinstance(root, Mapping):
        return found, notes
    for key in _KEYS:
        inner = root.get(key)
        if isinstance(inner, (list, tuple)) and any(isinstance(mask, Tensor) for mask in inner):
            notes.append(f"{key}: not applied, for its masks have no names")
        if not isinstance(inner, Mapping) or inner is state:
            continue
        for name, mask in _flat(inner):
            names = (name, f"{name}.weight", str(weight_of(name)))
            weight = next((each for each in names if is_mask_of(mask, state.get(each))), None)
            if weight is None:
                notes.append(
                    f"{key}: {name}: not applied, for no weight of its name and shape "
                    f"{list(mask.shape)} is there"
                )
            else:
                found[weight] = mask
    return found, notes


def note_of_mask(key: str, entries: Mapping[str, Any]) -> str | None:
    """What to say of a tensor that was not applied, where it may be meant as a mask.

    Example:
        >>> state = {"fc.weight": torch.ones(1, 2), "fc.mask_weight": torch.ones(1, 2)}
        >>> note_of_mask("fc.mask_weight", state)
        'fc.mask_weight: not applied, for it is not named as a mask of fc.weight is'
    """
    value = entries[key]
    layer, _, last = key.rpartition(".")
    if not isinstance(value, Tensor) or "mask" not in last:
        return None
    weight = weight_of(key)
    # Attention has buffers called so, too: attn_mask, of no weight called attn.
    named = key.endswith("_mask") and weight is not None
    if named and (weight in entries or key.endswith("weight_mask")):
        return (
            f"{key}: not applied, for it is no mask of zeros and ones in the shape of a weight "
            f"{weight} that keeps any of it"
        )
    for near in (f"{layer}.weight".lstrip("."), layer):
        if is_mask_of(value, entries.get(near)):
            return f"{key}: not applied, for it is not named as a mask of {near} is"
    return None


def fitted(mask: Tensor, shape: torch.Size, multiplied: bool) -> Tensor | None:
    """A mask in the shape of its weight; None where it has none, or may be read in two ways.

    `multiplied` are masks that torch multiplies a weight with, and so broadcasts. Of others, one
    element an output row is understood where it can be nothing else.

    Example:
        >>> rows = torch.tensor([1.0, 0.0])
        >>> fitted(rows, torch.Size([2, 3]), multiplied=False)
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
        >>> fitted(rows, torch.Size([2, 2]), multiplied=False) is None
        True
    """
    if not multiplied and mask.dim() == 1 and len(shape) > 1:
        if len(mask) != shape[0] or shape[0] == shape[-1]:
            return None
        mask = mask.view(-1, *[1] * (len(shape) - 1))
    try:
        return mask.expand(shape)
    except RuntimeError:
        return None


def refuse_masks_alone(root: Mapping[Any, Any]) -> None:
    """Raise where a checkpoint is nothing but NNI's masks.

    Raises:
        CheckpointError: it is.
    """
    layers = list(root.values())
    if not layers or not all(isinstance(layer, Mapping) and layer for layer in layers):
        return
    tensors = [tensor for layer in layers for tensor in layer.values() if tensor is not None]
    plain = (isinstance(tensor, Tensor) and is_plain(tensor) for tensor in tensors)
    if tensors and all(plain) and all(_is_binary(tensor) for tensor in tensors):
        raise CheckpointError(
            f"expected weights, got masks of {len(layers)} layers, as NNI saves them; try both in "
            "one file: torch.save({'state_dict': model.state_dict(), 'masks': masks}, path)"
        )


def _is_binary(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def _flat(masks: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in masks.items():
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, Mapping):
            for own, mask in value.items():
                if isinstance(mask, Tensor):
                    yield f"{name}.{own}", mask
