"""Pruner: masks that grow along a schedule and hold through any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.prune import maskstate
from sparseinfer.prune.amounts import check_sparsity, count_of
from sparseinfer.prune.criteria import Criterion, Taylor, parse_criterion
from sparseinfer.prune.grow import Count, grow
from sparseinfer.prune.rank import require_finite
from sparseinfer.prune.schedules import OneShot, Schedule, warn_of_missed_end
from sparseinfer.prune.structures import NM, Filters, Structure, Unstructured, parse_structure
from sparseinfer.prune.summary import Summary, held, nearly_emptied, summarize
from sparseinfer.prune.targets import Target, by_name, find_targets

__all__ = ["Pruner"]

SCOPES = ("global", "layer", "row")
Names = str | type | Iterable[str | type]


class Pruner:
    """Prunes a model, at once or while it trains, and holds the masks until `finalize`.

    Call `step()` after every `optimizer.step()` and `finalize()` after training. Weights are zeroed
    in place: the model stays plain, with plain parameters, all along, so checkpoints, deepcopy and
    torch.compile see nothing unusual. A hook on the optimiser masks weights and optimiser state
    after each of its steps, also where `step()` is forgotten.

    Args:
        model: the model, compiled or not. Masks of torch.nn.utils.prune are taken over.
        optimizer: held from now on; None: none yet, see `hold`.
        schedule: when and how sparse; a float prunes so much at the first `step()`; None: only
            `prune`, `threshold` and `custom` change masks.
        criterion: "magnitude", "random", "taylor", or a `Criterion`.
        structure: "unstructured", "filters", "channels", "2:4", "4x1", or a `Structure`. N:M sets
            the sparsity itself: the schedule then only says when.
        scope: "global" ranks all weights together, "layer" each weight for itself, "row" each of
            its output rows.
        targets, ignore: names, types or globs of layers, or of modules around them; see
            `find_targets`.
        ratios: sparsity by such a name or glob, the first that matches; such layers are ranked
            by themselves, and where the schedule grows, grow in proportion. Without a schedule,
            other layers stay dense.
        mask_bias: zero the bias of a filter that is pruned whole: without, it still emits its
            bias. (A BatchNorm behind it still emits its shift.)

    Fractions count units: weights, filters, blocks. Exactly round(sparsity * units) are pruned;
    ties go by index; masks only grow. `masks` are boolean, True = kept, by the weight's full name;
    tied weights have one; `skipped` tells what was left out, and why; `summary()` tells it all.

    Raises:
        ValueError: an argument is not one of these, a sparsity lies outside [0, 1), a name matches
            nothing, the optimiser holds none of the weights.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878.

    Example:
        >>> from sparseinfer.prune.schedules import PolynomialDecay
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> schedule = PolynomialDecay(0.0, 0.5, begin_step=0, end_step=10, frequency=1)
        >>> pruner = Pruner(model, optimizer, schedule, ignore=["2"])
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
        optimizer: torch.optim.Optimizer | None = None,
        schedule: float | Schedule | None = None,
        *,
        criterion: str | Criterion = "magnitude",
        structure: str | Structure = "unstructured",
        scope: str = "global",
        targets: Names | None = None,
        ignore: Names = (),
        ratios: Mapping[str, float] | None = None,
        mask_bias: bool = False,
    ) -> None:
        self.model = model
        self.criterion = parse_criterion(criterion)
        self.structure = parse_structure(structure)
        if scope not in SCOPES:
            raise ValueError(f"expected one of {', '.join(SCOPES)}, got {scope!r}, try 'global'")
        if scope == "row" and not isinstance(self.structure, Unstructured):
            raise ValueError(
                f"expected scope 'global' or 'layer' with {structure!r}, got 'row', try 'layer'"
            )
        self.scope = scope
        if mask_bias and not isinstance(self.structure, Filters):
            raise ValueError(
                f"expected structure='filters' with mask_bias, got {structure!r}, "
                "try mask_bias=False"
            )
        self.mask_bias = mask_bias
        self.targets, carried, self.skipped = find_targets(model, targets, ignore)
        for pattern, ratio in (ratios or {}).items():
            check_sparsity(ratio, f"the ratio of {pattern!r}")
        self.ratios = by_name(self.targets, ratios or {}, fill=schedule is None)
        if schedule is None and ratios:
            schedule = max(self.ratios.values())
        self.schedule = OneShot(float(schedule)) if isinstance(schedule, (int, float)) else schedule
        self.masks = {
            target.name: torch.ones(
                target.weight.shape, dtype=torch.bool, device=target.weight.device
            )
            for target in self.targets
        }
        self.steps = 0
        self._finished = False
        self._said: set[tuple[str, bool]] = set()
        self._optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[Any] = []
        if self.schedule is not None:
            warn_of_missed_end(self.schedule)
        if carried:
            self.custom({name: mask for name, mask in carried.items() if name in self.masks})
        if optimizer is not None:
            self.hold(optimizer)

    @property
    def sparsity(self) -> float:
        """The fraction of the prunable weights that the masks prune now."""
        kept = sum(int(torch.count_nonzero(mask)) for mask in self.masks.values())
        return 1.0 - kept / sum(mask.numel() for mask in self.masks.values())

    def __repr__(self) -> str:
        weights = f"{len(self.masks)} weights"
        skipped = f", {len(self.skipped)} left out" if self.skipped else ""
        return (
            f"Pruner({weights}{skipped}, sparsity={self.sparsity:.4g}, step={self.steps}, "
            f"schedule={self.schedule!r}, criterion={self.criterion!r}, "
            f"structure={self.structure!r}, scope={self.scope!r}, holds={self.holds})"
        )

    def summary(self) -> Summary:
        """What is pruned, how much of each weight, what was left and why; prints as a table.

        Example:
            >>> pruner = Pruner(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), ignore="1")
            >>> pruner.prune(0.75)
            >>> found = pruner.summary()
            >>> found.sparsity, [(row.name, row.reason) for row in found.left]
            (0.75, [('1.weight', 'ignored')])
        """
        how = f"{self.structure} by {self.criterion!r}, scope {self.scope}, step {self.steps}"
        if self.schedule is not None:
            how += f" of {self.schedule!r}"
        return summarize(self.model, self.targets, self.masks, self.skipped, self.structure, how)

    @property
    def holds(self) -> bool:
        """Whether an optimiser is held."""
        return bool(self._optimizers)

    def hold(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the masks through this optimiser's steps too; accelerate's wrapper is looked into.

        Raises:
            ValueError: the optimiser holds none of the weights to prune.
        """
        inner = getattr(optimizer, "optimizer", optimizer)
        owned = {id(weight) for group in inner.param_groups for weight in group["params"]}
        if not any(id(target.weight) in owned for target in self.targets):
            raise ValueError(
                "expected an optimizer of this model's weights, got one that holds none of those "
                "to prune, try torch.optim.AdamW(model.parameters())"
            )
        self._optimizers.append(inner)
        self._register(inner)
        self.apply()

    def step(self) -> None:
        """Change the masks if the schedule says so, and count one training step.

        Warns once for each weight that loses over 99%, and once where a mask empties it.

        Raises:
            RuntimeError: after `finalize`.
            ValueError: a weight to rank holds NaN or Inf.
        """
        if self._finished:
            raise RuntimeError("expected step() before finalize(), got it after, try a new Pruner")
        if self.schedule is not None and self.schedule.is_update(self.steps):
            self._grow(self.schedule.sparsity(self.steps))
        elif not self._optimizers:
            self.apply()
        self.steps += 1

    def prune(self, amount: float | int | None = None) -> None:
        """Prune `amount` more at once: a fraction of the survivors, or a count.

        As in torch.nn.utils.prune, 0.5 twice leaves a quarter. With scope "layer" or "row" a count
        is of each layer or row; `ratios` are fractions of a layer's survivors and come before
        `amount`. None where N:M or `ratios` say it all.

        Raises:
            TypeError, ValueError: see `count_of`; or a weight to rank holds NaN or Inf.
        """
        if amount is None and not (self.ratios or isinstance(self.structure, NM)):
            raise ValueError("expected an amount to prune, got None, try 0.5")
        for group, ratio in self._groups():
            wanted = amount if ratio is None else ratio

            def count(alive: int, total: int, wanted: Any = wanted) -> int:
                return count_of(wanted or 0, alive)

            self._rank(group, count)
        self._changed()

    def threshold(self, limit: float | Mapping[str, float]) -> None:
        """Prune each weight with |w| <= limit; a mapping gives limits by name or glob.

        Raises:
            ValueError: a limit below 0 or NaN, a name that matches nothing, or a NaN weight.
        """
        if isinstance(limit, Mapping):
            limits = by_name(self.targets, limit)
        else:
            limits = {target.name: limit for target in self.targets}
        for target in self.targets:
            if target.name in limits:
                value = limits[target.name]
                if not value >= 0:
                    raise ValueError(f"expected a threshold >= 0, got {value}, try 0.01")
                require_finite(target.name, target.weight)
                self.masks[target.name] &= target.weight.detach().abs() > value
        self._changed()

    def custom(self, masks: Mapping[str, Tensor]) -> None:
        """Prune what `masks` (by full name or layer; zero or False = pruned) prunes, besides.

        Raises:
            ValueError: a name matches no weight, or a shape differs.
        """
        for name, mask in masks.items():
            found = [target for target in self.targets if target.matches(name)]
            if not found:
                raise ValueError(
                    f"expected names of pruned weights, got {name!r}, try one of {list(self.masks)}"
                )
            for target in found:
                own = self.masks[target.name]
                if mask.shape != own.shape:
                    raise ValueError(
                        f"expected a mask of shape {tuple(own.shape)} for {target.name!r}, "
                        f"got {tuple(mask.shape)}, try torch.ones_like(weight)"
                    )
                own &= mask.to(own.device) != 0
        self._changed()

    def accumulate(self) -> None:
        """Add the gradients there are now to the Taylor criterion: call it after `backward()`.

        Raises:
            ValueError: the criterion takes no gradients.
        """
        if not isinstance(self.criterion, Taylor):
            raise ValueError("expected criterion='taylor' to accumulate for, got another one")
        self.criterion.add({target.name: target.weight for target in self.targets})

    @torch.no_grad()
    def apply(self) -> None:
        """Zero what the masks prune, in the weights and in the state of the held optimisers."""
        for target in self.targets:
            weight = target.weight
            mask = self.masks[target.name] = self.masks[target.name].to(weight.device)
            pruned = ~mask
            self._zero(weight, pruned)
            if self.mask_bias and target.bias is not None:
                filters = target.canonical(pruned).flatten(1).all(dim=1)
                self._zero(target.module.get_parameter(target.bias), filters)

    def finalize(self) -> nn.Module:
        """Apply the masks a last time, let go of the optimisers and return the model.

        `summary()` tells what was pruned, before and after.

        Raises:
            RuntimeError: the schedule has not reached its last update; so a model of another
                sparsity than asked for is never taken for the finished one.
        """
        if self.schedule is not None and self.steps <= self.schedule.last_update:
            raise RuntimeError(
                f"expected at least {self.schedule.last_update + 1} calls of step() (the schedule "
                f"ends at step {self.schedule.last_update}), got {self.steps}, try an earlier end"
            )
        self.apply()
        self.release()
        self._finished = True
        return self.model

    def release(self) -> None:
        """Take the hooks off the optimisers: nothing holds the masks any more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizers.clear()

    def state_dict(self) -> dict[str, Any]:
        """Masks as packed bits (1/32 of float32 weights), the step, Taylor sums: to resume from.

        It holds tensors and plain values: torch.load reads it with weights_only=True.
        """
        sums = self.criterion.scores if isinstance(self.criterion, Taylor) else {}
        return maskstate.save(self.masks, self.steps, sums)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: it is not such a state, or one of other weights.
        """
        self.masks, self.steps, sums = maskstate.load(state, self.masks)
        if isinstance(self.criterion, Taylor):
            self.criterion.scores = sums
        self.apply()

    # ---- how masks grow

    def _grow(self, wanted: float) -> None:
        for group, ratio in self._groups():
            assert self.schedule is not None
            share = wanted if ratio is None else ratio * wanted / (self.schedule.final or 1.0)

            def count(alive: int, total: int, share: float = share) -> int:
                return round(share * total) - (total - alive)

            self._rank(group, count)
        self._changed()

    def _groups(self) -> list[tuple[list[Target], float | None]]:
        """The targets that are ranked together, with the ratio of those that have their own."""
        own = [([t], self.ratios[t.name]) for t in self.targets if t.name in self.ratios]
        rest = [target for target in self.targets if target.name not in self.ratios]
        if self.scope == "global":
            return [*own, (rest, None)] if rest else [*own]
        return [*own, *(([target], None) for target in rest)]

    def _rank(self, group: list[Target], count: Count) -> None:
        by_row = self.scope == "row"
        grow(group, self.masks, self.criterion, self.structure, count, by_row=by_row)

    def _changed(self) -> None:
        self.apply()
        if isinstance(self.criterion, Taylor) and self._optimizers:
            self.criterion.reset()
        for name, mask in self.masks.items():
            for text in nearly_emptied(held(name, mask)):
                # The number left changes from step to step; that it is empty is said once more.
                said = (name, bool(mask.any()))
                if said not in self._said:
                    self._said.add(said)
                    warnings.warn(text, stacklevel=3)

    # ---- how masks hold

    def _zero(self, parameter: nn.Parameter, pruned: Tensor) -> None:
        parameter.masked_fill_(pruned, 0.0)
        for optimizer in self._optimizers:
            # Momentum left under a mask would push the weight off zero at the next step.
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(pruned, 0.0)

    def _register(self, optimizer: torch.optim.Optimizer) -> None:
        self._handles.append(optimizer.register_step_post_hook(self._after_step))
        if isinstance(self.criterion, Taylor):
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def _after_step(self, *_: Any) -> None:
        self.apply()

    def _before_step(self, *_: Any) -> None:
        self.accumulate()

    def __getstate__(self) -> dict[str, Any]:
        # An optimiser's copy loses its hooks: the copy of the pruner hooks itself on again.
        return {**self.__dict__, "_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for optimizer in self._optimizers:
            self._register(optimizer)
