"""One-shot pruning of a whole network, the same for every model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparseinfer.prune.rank import prune_smallest


def prunable(model: nn.Module, kept: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the weights of linear, convolution and recurrent layers, whatever their class.

    These are the parameters of two dimensions or more whose name starts with "weight", but for
    embeddings, layers named in `kept`, and what shares its parameter with one of these.

    Raises:
        ValueError: a name in `kept` is no module of the model, or nothing is left.
    """
    modules = dict(model.named_modules())
    for name in kept:
        if name not in modules:
            raise ValueError(f"expected kept layers of the model, got {name!r}, try one of them")
    held = {
        id(parameter)
        for name, module in modules.items()
        if name in kept or isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    found = {
        f"{name}.{key}".lstrip("."): parameter
        for name, module in modules.items()
        for key, parameter in module.named_parameters(recurse=False)
        if key.startswith("weight") and parameter.dim() > 1 and id(parameter) not in held
    }
    if not found:
        raise ValueError("expected weights to prune, got none, try fewer kept layers")
    return found


@torch.no_grad()
def prune(model: nn.Module, sparsity: float, kept: Sequence[str] = ()) -> float:
    """Set weights to zero in place, smallest |w| / std(its layer) first, over all layers at once.

    Returns:
        The share of zeros among the weights that could be pruned, 0 to 1; above `sparsity` where
        weights were zero before.

    Raises:
        ValueError: as `prunable` does, or the sparsity is outside [0, 1].

    Source: magnitude pruning over all layers after normalising each by its standard deviation, as
    published benchmarks of sparse engines do, so that no layer is emptied for its scale alone.
    """
    weights = prunable(model, kept)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"expected a sparsity of 0 to 1, got {sparsity}, try 0.9")
    scaled = [weight / weight.std() for weight in weights.values()]
    count = round(sparsity * sum(weight.numel() for weight in scaled))
    for weight, mask in zip(weights.values(), prune_smallest(scaled, count), strict=True):
        weight.masked_fill_(~mask, 0.0)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    return zeros / sum(weight.numel() for weight in weights.values())


@torch.no_grad()
def settle_batch_norms(model: nn.Module, images: torch.Tensor) -> None:
    """Give the batch norms of an untrained network the statistics of `images`.

    Without them signals shrink from layer to layer until their floats are denormal, which is slow
    on some processors and no property of the network.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        model(images)
    model.eval()
