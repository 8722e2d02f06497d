"""What makes a weight worth keeping: its magnitude, chance, its effect on the loss."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparseinfer.prune.structures import Structure

__all__ = ["Criterion", "Magnitude", "Random", "Taylor", "parse_criterion", "taylor"]


class Criterion(Protocol):
    """Scores the units of a weight; the smallest go first."""

    def score(self, name: str, weight: Tensor, structure: Structure) -> Tensor:
        """The scores of the units of `weight` [output, input, ...], in the structure's shape."""


class Magnitude:
    """Units with the smallest weights go: |w|, or the norm that the structure names.

    Example:
        >>> from sparseinfer.prune.structures import Unstructured
        >>> Magnitude().score("w", torch.tensor([[-2.0]]), Unstructured())
        tensor([[-2.]])
    """

    def score(self, name: str, weight: Tensor, structure: Structure) -> Tensor:
        """The weights as they are (ranked by magnitude), or the norms of their units."""
        return structure.reduce(weight.detach())

    def __repr__(self) -> str:
        return "Magnitude()"


class Random:
    """Any units go, the same ones for the same seed and name.

    Example:
        >>> from sparseinfer.prune.structures import Unstructured
        >>> draws = [Random(3).score("w", torch.ones(2, 2), Unstructured()) for _ in range(2)]
        >>> bool((draws[0] == draws[1]).all())
        True
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, name: str, weight: Tensor, structure: Structure) -> Tensor:
        """Uniform numbers in (0, 1], one a unit."""
        # torch's generator looks at 32 bits of a seed.
        seed = zlib.crc32(f"{self.seed} {name}".encode())
        generator = torch.Generator().manual_seed(seed)
        units = structure.reduce(weight.detach())
        return 1.0 - torch.rand(units.shape, generator=generator).to(units.device)

    def __repr__(self) -> str:
        return f"Random(seed={self.seed})"


class Taylor:
    """Units whose removal changes the loss least, to first order: the sum over batches of |g w|.

    `add` takes one batch's gradients; a `Pruner` does so before every optimiser step, or when its
    `accumulate` is called, and starts anew after each change of the masks.

    Source: Molchanov et al., "Importance estimation for neural network pruning", 2019,
    arXiv:1906.10771.

    Example:
        >>> from sparseinfer.prune.structures import Unstructured
        >>> weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
        >>> (3 * weight).sum().backward()
        >>> criterion = Taylor()
        >>> criterion.add({"w": weight})
        >>> criterion.score("w", weight, Unstructured())
        tensor([[6., 3.]])
    """

    def __init__(self, scores: Mapping[str, Tensor] | None = None) -> None:
        self.scores = dict(scores or {})

    @torch.no_grad()
    def add(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Add |gradient * weight| of one batch; a weight without a gradient adds nothing."""
        for name, weight in weights.items():
            if weight.grad is not None:
                change = (weight.grad * weight).abs_()
                self.scores[name] = self.scores[name] + change if name in self.scores else change

    def reset(self) -> None:
        """Forget all batches."""
        self.scores.clear()

    def score(self, name: str, weight: Tensor, structure: Structure) -> Tensor:
        """The accumulated importance of each unit.

        Raises:
            ValueError: no gradient has been seen for this weight.
        """
        if name not in self.scores:
            raise ValueError(
                f"expected gradients for {name!r} to rank its weights, got none, try "
                "pruner.accumulate() after backward(), or sparseinfer.prune.taylor"
            )
        scores = self.scores[name]
        return structure.reduce(scores if scores.shape == weight.shape else scores.transpose(0, 1))

    def __repr__(self) -> str:
        return f"Taylor({len(self.scores)} weights seen)"


def taylor(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> Taylor:
    """Return the Taylor criterion of a model over batches, without changing the model.

    `loss(model, batch)` returns a scalar to differentiate. Gradients already there are put back.

    Raises:
        ValueError: there are no batches.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> criterion = taylor(layer, [torch.ones(1, 2)], lambda model, x: model(x).sum())
        >>> bool((criterion.scores["weight"] == layer.weight.abs()).all())
        True
    """
    criterion = Taylor()
    weights = dict(model.named_parameters())
    before = {name: weight.grad for name, weight in weights.items()}
    seen = 0
    try:
        for batch in batches:
            for weight in weights.values():
                weight.grad = None
            loss(model, batch).backward()
            criterion.add(weights)
            seen += 1
    finally:
        for name, weight in weights.items():
            weight.grad = before[name]
    if not seen:
        raise ValueError("expected at least one batch, got none, try a list of batches")
    return criterion


def parse_criterion(criterion: str | Criterion) -> Criterion:
    """Return the criterion named: "magnitude", "random" or "taylor".

    Raises:
        ValueError: the name is none of these.

    Example:
        >>> type(parse_criterion("magnitude")).__name__
        'Magnitude'
    """
    if not isinstance(criterion, str):
        return criterion
    named: dict[str, Callable[[], Criterion]] = {
        "magnitude": Magnitude, "random": Random, "taylor": Taylor,
    }  # fmt: skip
    if criterion not in named:
        raise ValueError(f"expected one of {', '.join(named)}, got {criterion!r}, try 'magnitude'")
    return named[criterion]()
