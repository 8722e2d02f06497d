"""Keeps zeros through a change of the weights: merging LoRA adapters, loading, averaging."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseinfer.prune.targets import find_targets

__all__ = ["apply_masks", "masks_of", "merge_lora"]


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks (True = non-zero) of a pruned model's weights, by full name.

    Weights without a zero are left out.

    Raises:
        ValueError: see `find_targets`.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 1.0]]))
        >>> masks_of(layer)
        {'weight': tensor([[False,  True]])}
    """
    masks = {target.name: target.weight.detach() != 0 for target in find_targets(model)[0]}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Zero in place what `masks` prune, after a merge or a load; returns the model.

    Raises:
        ValueError: a name is no parameter of the model, or a shape differs.

    Example:
        >>> layer = apply_masks(nn.Linear(2, 1), {"weight": torch.tensor([[False, True]])})
        >>> int((layer.weight == 0).sum())
        1
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        weight = parameters.get(name)
        if weight is None or weight.shape != mask.shape:
            found = "no such parameter" if weight is None else f"shape {tuple(weight.shape)}"
            raise ValueError(
                f"expected a parameter {name!r} of shape {tuple(mask.shape)}, got {found}, "
                "try masks_of on the same model before the merge"
            )
        weight.masked_fill_(~mask.to(weight.device), 0.0)
    return model


@torch.no_grad()
def merge_lora(
    layer: nn.Module, A: Tensor, B: Tensor, scaling: float = 1.0, *, keep_mask: bool = True
) -> nn.Module:
    """Add scaling * B @ A to a layer's weight; `keep_mask` leaves its zeros zero.

    `A` is [rank, inputs], `B` [outputs, rank]; for a convolution with the kernel's dimensions
    behind, [rank, inputs, kh, kw] and [outputs, rank, 1, 1]. For adapters merged by a library, take
    `masks_of` before and `apply_masks` after.

    Raises:
        ValueError: the product does not have the weight's number of rows and columns.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", 2021, arXiv:2106.09685.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 1.0]]))
        >>> merge_lora(layer, torch.ones(1, 2), torch.ones(1, 1)).weight.tolist()
        [[0.0, 2.0]]
    """
    weight = layer.get_parameter("weight")
    delta = B.flatten(1).float() @ A.flatten(1).float()
    if delta.shape != weight.flatten(1).shape:
        raise ValueError(
            f"expected B @ A of {tuple(weight.flatten(1).shape)}, got {tuple(delta.shape)}, "
            "try A [rank, inputs] and B [outputs, rank]"
        )
    delta = delta.reshape(weight.shape).mul_(scaling).to(weight)
    if keep_mask:
        delta.masked_fill_(weight == 0, 0.0)
    weight.add_(delta)
    return layer
