"""Gradual global magnitude pruning: a schedule, exact masks, and masks held while training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

PRUNABLE_TYPES: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class PolynomialDecay:
    """Sparsity that grows from `initial` to `final`, fast at first, between two training steps.

    At step t, with p = (t - begin) / (end - begin) clamped to [0, 1], the sparsity is
    final + (initial - final) * (1 - p) ** power. Steps count from 0; both ends are inclusive.

    The arguments mean what they mean in TensorFlow Model Optimization's `PolynomialDecay`, with
    one difference: `end` is always an update, so `final` is reached also where `frequency` does
    not divide `end - begin` (there the last updates would be lost).

    Raises:
        ValueError: unless 0 <= initial <= final < 1, 0 <= begin < end, power > 0, frequency >= 1.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878.

    Example:
        >>> schedule = PolynomialDecay(initial=0.0, final=0.9, begin=0, end=100, frequency=10)
        >>> [round(schedule.sparsity(step), 3) for step in (0, 50, 100, 1000)]
        [0.0, 0.787, 0.9, 0.9]
    """

    initial: float
    final: float
    begin: int
    end: int
    power: float = 3.0
    frequency: int = 100

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final < 1.0:
            raise ValueError(
                "expected 0 <= initial <= final < 1, "
                f"got initial={self.initial}, final={self.final}, try initial=0.0, final=0.9"
            )
        if not 0 <= self.begin < self.end:
            raise ValueError(
                f"expected 0 <= begin < end, got begin={self.begin}, end={self.end}, "
                "try begin=0 and end=the number of training steps minus one"
            )
        if not self.power > 0:
            raise ValueError(f"expected power > 0, got {self.power}, try power=3")
        if self.frequency < 1:
            raise ValueError(f"expected frequency >= 1, got {self.frequency}, try frequency=100")

    def sparsity(self, step: int) -> float:
        """Return the fraction of pruned weights wanted at `step`, in [initial, final]."""
        progress = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        return self.final + (self.initial - self.final) * (1.0 - progress) ** self.power

    def is_update(self, step: int) -> bool:
        """Return whether the masks change at `step`: every `frequency` steps, and at `end`."""
        if not self.begin <= step <= self.end:
            return False
        return (step - self.begin) % self.frequency == 0 or step == self.end


def global_magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    held: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return boolean masks (True = kept) that prune the smallest magnitudes over all weights.

    Exactly round(sparsity * total) elements are False (half to even, as torch rounds); between
    equal magnitudes the one that comes first, in the order of `weights` and row-major within a
    weight, is pruned first. Elements that `held` already prunes stay pruned and count as the
    smallest, so masks of successive calls are nested; if `held` prunes more than asked for, the
    result is `held`.

    `weights`: floating-point tensors of any shapes and dtypes; `held`: boolean tensors of the same
    names and shapes.

    Raises:
        ValueError: a sparsity outside [0, 1], or a weight with NaN or Inf, which has no rank.

    Example:
        >>> weights = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([2.0])}
        >>> masks = global_magnitude_masks(weights, sparsity=1 / 3)
        >>> masks["a"].tolist(), masks["b"].tolist()
        ([True, False], [True])
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"expected a sparsity in [0, 1], got {sparsity}, try 0.9")
    if not weights:
        return {}
    device = next(iter(weights.values())).device
    scores = []
    for name, weight in weights.items():
        magnitude = weight.detach().abs().reshape(-1).to(device)
        # abs of a half is exact in float32, and kthvalue is not there for half on every device.
        magnitude = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
        bad = int((~torch.isfinite(magnitude)).sum())
        if bad:
            raise ValueError(
                f"expected finite weights to rank, got {bad} NaN or Inf in {name!r}, "
                "try a smaller learning rate, or leave this layer out"
            )
        if held is not None:
            magnitude = magnitude.masked_fill(~held[name].reshape(-1).to(device), -1.0)
        scores.append(magnitude)
    score = torch.cat(scores)
    already = int((score < 0).sum())
    pruned_count = max(round(sparsity * score.numel()), already)
    keep = torch.ones(score.numel(), dtype=torch.bool, device=device)
    if pruned_count:
        # kthvalue and an explicit cut through the ties: torch.quantile fails above 2**24 elements
        # and "score <= threshold" prunes every tie.
        threshold = torch.kthvalue(score, pruned_count).values
        keep = score >= threshold
        ties = (score == threshold).nonzero().reshape(-1)
        keep[ties[: pruned_count - int((score < threshold).sum())]] = False
    parts = keep.split([weight.numel() for weight in weights.values()])
    return {
        name: part.reshape(weight.shape).to(weight.device)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


class MagnitudePruner:
    """Prune a model by global magnitude along a schedule while it trains, holding the masks.

    Call `step()` after every `optimizer.step()`, and `finalize()` after training. The weights are
    zeroed in place: the model stays a plain model with plain parameters all along, tied weights
    stay tied and are counted once.

    Only `weight` of Linear, Conv1d and Conv2d is pruned, wherever nested; never a bias, a
    normalisation or an embedding. `exclude` names layers that stay dense: exact names or patterns
    such as "encoder.*".

    Raises:
        ValueError: an `exclude` entry matches no layer, nothing is left to prune, a weight is not a
            plain parameter (masks or parametrizations attached), or it is shared with a module that
            must not be pruned.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> schedule = PolynomialDecay(0.0, 0.5, begin=0, end=10, frequency=1)
        >>> pruner = MagnitudePruner(model, optimizer, schedule, exclude=["2"])
        >>> for _ in range(12):
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     pruner.step()
        >>> int((pruner.finalize()[0].weight == 0).sum())
        32
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: PolynomialDecay,
        *,
        exclude: Iterable[str] = (),
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.weights = _prunable_weights(model, tuple(exclude))
        self.masks = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()
        }
        self.steps = 0
        self._emptied: set[str] = set()

    @property
    def sparsity(self) -> float:
        """The fraction of the prunable weights that the masks prune now."""
        pruned = sum(int((~mask).sum()) for mask in self.masks.values())
        return pruned / sum(mask.numel() for mask in self.masks.values())

    @torch.no_grad()
    def step(self) -> None:
        """Update the masks if the schedule says so, and apply them to weights and optimiser.

        Warns once for each layer that a mask empties.
        """
        if self.schedule.is_update(self.steps):
            wanted = self.schedule.sparsity(self.steps)
            self.masks = global_magnitude_masks(self.weights, wanted, held=self.masks)
            self._warn_of_emptied_layers()
        self._apply()
        self.steps += 1

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Apply the masks a last time and return the model.

        Raises:
            RuntimeError: the schedule has not reached its end; so a model of another sparsity than
                asked for is never taken for the finished one.
        """
        if self.steps <= self.schedule.end:
            raise RuntimeError(
                f"expected at least {self.schedule.end + 1} calls of step() (the schedule ends at "
                f"step {self.schedule.end}), got {self.steps}, try an earlier end"
            )
        self._apply()
        return self.model

    def _apply(self) -> None:
        for name, weight in self.weights.items():
            pruned = ~self.masks[name]
            weight.masked_fill_(pruned, 0.0)
            # Momentum left under a mask would push the weight off zero at the next step.
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(pruned, 0.0)

    def _warn_of_emptied_layers(self) -> None:
        for name, mask in self.masks.items():
            if name not in self._emptied and not bool(mask.any()):
                self._emptied.add(name)
                warnings.warn(
                    f"pruning emptied layer {name!r}: all its weights are zero; "
                    "try a lower sparsity, or exclude this layer",
                    stacklevel=3,
                )


def _prunable_weights(model: nn.Module, exclude: tuple[str, ...]) -> dict[str, nn.Parameter]:
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE_TYPES)
    }
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"expected exclude to name Linear, Conv1d or Conv2d layers, got {pattern!r}, "
                f"try one of {list(layers)}"
            )
    excluded = {name for name in layers if any(fnmatchcase(name, p) for p in exclude)}
    protected: dict[int, str] = {}
    for name, module in model.named_modules():
        if name not in layers or name in excluded:
            protected.update((id(p), name) for p in module.parameters(recurse=False))
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in layers.items():
        if name in excluded:
            continue
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is None:
            raise ValueError(
                f"expected a plain weight parameter in layer {name!r}, got masks or "
                "parametrizations attached, try torch.nn.utils.prune.remove first"
            )
        if id(weight) in protected:
            raise ValueError(
                f"layer {name!r} shares its weight with {protected[id(weight)]!r}, which is not to "
                f"be pruned, try exclude=[{name!r}]"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            weights[name] = weight
    if not weights:
        raise ValueError(
            "expected a model with Linear, Conv1d or Conv2d layers to prune, got none, "
            "try fewer names in exclude"
        )
    return weights
