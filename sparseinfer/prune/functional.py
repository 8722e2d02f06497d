"""The functions of torch.nn.utils.prune with exact counts, ties by index and little memory.

They attach masks as torch does, `weight_orig` and `weight_mask`: torch's `remove`, `is_pruned` and
everything that reads its masks (`convert_to_sparse`, `Pruner`) work on the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.prune import custom_from_mask, is_pruned, remove

from sparseinfer.prune.amounts import count_of
from sparseinfer.prune.criteria import Criterion, Magnitude, Random
from sparseinfer.prune.rank import prune_smallest, require_finite
from sparseinfer.prune.structures import Channels, Filters, Structure, Unstructured

__all__ = [
    "custom_from_mask",
    "global_unstructured",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "random_structured",
    "random_unstructured",
    "remove",
    "threshold_unstructured",
]


def l1_unstructured(module: nn.Module, name: str, amount: float | int) -> nn.Module:
    """Prune the smallest |w| of one parameter; `amount` is a fraction of the survivors or a count.

    Raises:
        TypeError, ValueError: see `count_of`; or the parameter holds NaN or Inf.

    Example:
        >>> int(l1_unstructured(nn.Linear(4, 4), "weight", 0.5).weight_mask.sum())
        8
    """
    return _prune([(module, name)], amount, Magnitude(), Unstructured())


def random_unstructured(
    module: nn.Module, name: str, amount: float | int, seed: int = 0
) -> nn.Module:
    """Prune elements of one parameter at random, the same for the same seed.

    Raises:
        TypeError, ValueError: see `count_of`.

    Example:
        >>> int(random_unstructured(nn.Linear(4, 4), "weight", 3).weight_mask.sum())
        13
    """
    return _prune([(module, name)], amount, Random(seed), Unstructured())


def ln_structured(
    module: nn.Module, name: str, amount: float | int, n: float = 2, dim: int = 0
) -> nn.Module:
    """Prune slices of one parameter with the smallest L_n norm: dim 0 filters, dim 1 channels.

    A pruned filter still emits its bias; see `Pruner`'s mask_bias.

    Raises:
        TypeError, ValueError: see `count_of`; or dim is neither 0 nor 1, or n <= 0.

    Example:
        >>> ln_structured(nn.Linear(4, 4), "weight", 1, n=1, dim=0).weight_mask.sum(1).unique()
        tensor([0., 4.])
    """
    return _prune([(module, name)], amount, Magnitude(), _slices(dim, n))


def random_structured(
    module: nn.Module, name: str, amount: float | int, dim: int = 0, seed: int = 0
) -> nn.Module:
    """Prune slices of one parameter at random, the same for the same seed.

    Raises:
        TypeError, ValueError: see `count_of`; or dim is neither 0 nor 1.

    Example:
        >>> int(random_structured(nn.Linear(4, 4), "weight", 0.5, dim=1).weight_mask.sum())
        8
    """
    return _prune([(module, name)], amount, Random(seed), _slices(dim, 2))


def threshold_unstructured(module: nn.Module, name: str, threshold: float) -> nn.Module:
    """Prune each |w| <= threshold of one parameter.

    Raises:
        ValueError: a threshold below 0 or NaN.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[-0.5, 0.1]]))
        >>> threshold_unstructured(layer, "weight", 0.1).weight_mask
        tensor([[1., 0.]])
    """
    if not threshold >= 0:
        raise ValueError(f"expected a threshold >= 0, got {threshold}, try 0.01")
    weight = getattr(module, name)
    return custom_from_mask(module, name, (weight.detach().abs() > threshold).to(weight.dtype))


def global_unstructured(
    parameters: Sequence[tuple[nn.Module, str]],
    amount: float | int,
    criterion: Criterion | None = None,
) -> None:
    """Prune over several parameters ranked together; `criterion` is `Magnitude()` unless given.

    Raises:
        TypeError, ValueError: see `count_of`; or a parameter holds NaN or Inf.

    Example:
        >>> layers = [nn.Linear(4, 4), nn.Linear(4, 2)]
        >>> global_unstructured([(layer, "weight") for layer in layers], amount=0.25)
        >>> sum(int((layer.weight_mask == 0).sum()) for layer in layers)
        6
    """
    _prune(list(parameters), amount, criterion or Magnitude(), Unstructured())


def _slices(dim: int, n: float) -> Structure:
    if dim not in (0, 1):
        raise ValueError(f"expected dim 0 (filters) or 1 (input channels), got {dim}, try dim=0")
    return Filters(n) if dim == 0 else Channels(n)


@torch.no_grad()
def _prune(
    parameters: list[tuple[nn.Module, str]],
    amount: float | int,
    criterion: Criterion,
    structure: Structure,
) -> nn.Module:
    weights: list[Tensor] = [getattr(module, name) for module, name in parameters]
    masks = [
        getattr(module, f"{name}_mask", torch.ones_like(weight)) != 0
        for (module, name), weight in zip(parameters, weights, strict=True)
    ]
    alive = [structure.alive(mask) for mask in masks]
    scores = []
    for index, ((module, name), weight) in enumerate(zip(parameters, weights, strict=True)):
        require_finite(f"{name} of {module}", weight)
        # The index gives each parameter numbers of its own where they are random.
        scores.append(criterion.score(f"{index}.{name}", weight, structure))
    count = count_of(amount, sum(int(flags.sum()) for flags in alive))
    kept = prune_smallest(scores, count, alive)
    for (module, name), weight, units in zip(parameters, weights, kept, strict=True):
        mask = structure.expand(units, weight.shape)
        torch_prune.custom_from_mask(module, name, mask.to(weight.dtype))
    return parameters[0][0]
