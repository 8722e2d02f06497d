"""Takes masks that other pruning tools attached to a module off it, and keeps what they pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

__all__ = ["take_over"]


@torch.no_grad()
def take_over(module: nn.Module, attribute: str, name: str) -> Tensor | None:
    """Make a masked weight a plain parameter, the same object as before; return its mask.

    Understands `weight_orig` with `weight_mask` (torch.nn.utils.prune), and parametrizations that
    each hold a `mask` buffer (torch.ao.pruning). Returns None for a plain parameter.

    `name` is the weight's full name, for messages.

    Raises:
        ValueError: the weight is computed in another way (weight_norm, spectral_norm, ...).

    Example:
        >>> layer = torch_prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=12)
        >>> int(take_over(layer, "weight", "layer.weight").sum()), list(layer.state_dict())
        (4, ['bias', 'weight'])
    """
    if f"{attribute}_mask" in module._buffers and f"{attribute}_orig" in module._parameters:
        mask = module.get_buffer(f"{attribute}_mask") != 0
        torch_prune.remove(module, attribute)
        # `remove` keeps the value of the last forward; the optimiser may have stepped since.
        module.get_parameter(attribute).masked_fill_(~mask, 0.0)
        return mask
    if parametrize.is_parametrized(module, attribute):
        parametrizations: Any = module.parametrizations
        masks = [getattr(item, "mask", None) for item in parametrizations[attribute]]
        found = [mask != 0 for mask in masks if isinstance(mask, Tensor)]
        if len(found) == len(masks):
            kept = torch.stack(found).all(dim=0)
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
            return kept.expand_as(module.get_parameter(attribute)).contiguous()
    elif module._parameters.get(attribute) is not None:
        return None
    raise ValueError(
        f"expected {name!r} to be a plain parameter or a masked one, got one computed by a hook or "
        "a parametrization, try removing that first (weight_norm: "
        "torch.nn.utils.parametrize.remove_parametrizations), or ignore this layer"
    )
