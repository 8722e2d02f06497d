"""Which layers bear pruning: accuracy against sparsity a layer, and ratios for a target from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseinfer.plotting import name_lines, need_matplotlib, write_figure
from sparseinfer.prune.amounts import check_sparsity
from sparseinfer.prune.layercosts import layer_costs
from sparseinfer.prune.pruner import Pruner

__all__ = ["Sensitivity", "scan_sensitivity"]

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass
class Sensitivity:
    """Accuracy of a model with one weight pruned, by weight and sparsity; the rest dense.

    `costs[kind][name][i]` is what a layer costs at sparsity (0, *sparsities)[i]: non-zeros for
    "size", multiply-adds for "flops", milliseconds for "latency"; the last two where example inputs
    were given.
    """

    baseline: float
    sparsities: list[float]
    accuracy: dict[str, list[float]]
    costs: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def drop(self, name: str, level: int) -> float:
        """Accuracy lost by a layer at (0, *sparsities)[level]; never less than at a lower one."""
        accuracies = [self.baseline, *self.accuracy[name]][: level + 1]
        return self.baseline - min(accuracies)

    def ratios(self, fraction: float, of: str = "size") -> dict[str, float]:
        """Return a sparsity for each weight, so that the cost falls to `fraction` of the dense one.

        Greedy: the step to a next sparsity that loses least accuracy for what it saves comes first.
        Hand the result to `Pruner(ratios=...)`. For "latency" a layer costs the faster of its dense
        and its sparse time as measured here, so one that does not gain is left alone.

        Raises:
            ValueError: `of` was not measured, a fraction outside (0, 1], or one that the sparsities
                scanned cannot reach; the message says how far they get.

        Source: greedy allocation by sensitivity, as in Li et al., 2016, arXiv:1608.08710.

        Example:
            >>> found = Sensitivity(1.0, [0.5], {"a": [0.9], "b": [0.5]},
            ...                     {"size": {"a": [10, 5], "b": [10, 5]}})
            >>> found.ratios(0.75)
            {'a': 0.5, 'b': 0.0}
        """
        if of not in self.costs:
            raise ValueError(
                f"expected one of {', '.join(self.costs)}, got {of!r}, "
                "try scan_sensitivity with example_inputs"
            )
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"expected a fraction in (0, 1], got {fraction}, try 0.5")
        costs = self.costs[of]
        dense = sum(cost[0] for cost in costs.values())
        levels = dict.fromkeys(costs, 0)
        total = dense
        # A sum of floats that fell is not exactly what it is compared with.
        while total > fraction * dense * (1 + 1e-9):
            step = min(
                (
                    (self._price(name, level, ahead, costs[name]), name, ahead)
                    for name, level in levels.items()
                    for ahead in range(level + 1, len(costs[name]))
                    if costs[name][ahead] < costs[name][level]
                ),
                default=None,
            )
            if step is None:
                raise ValueError(
                    f"expected a fraction that the sparsities scanned reach, got {fraction}: they "
                    f"reach {total / dense:.3f} of the dense {of}, try higher sparsities"
                )
            _, name, ahead = step
            total += costs[name][ahead] - costs[name][levels[name]]
            levels[name] = ahead
        choices = [0.0, *self.sparsities]
        return {name: choices[level] for name, level in levels.items()}

    def _price(self, name: str, level: int, ahead: int, cost: list[float]) -> float:
        lost = self.drop(name, ahead) - self.drop(name, level)
        return lost / (cost[level] - cost[ahead])

    def plot(self, path: str | Path) -> None:
        """Draw accuracy against sparsity, a line a layer, into a file that its ending names.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Sensitivity(1.0, [0.5, 0.9], {"a": [0.9, 0.2]}).plot(f"{folder}/lines.png")
        """
        need_matplotlib()
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axis = figure.subplots()
        lines = [
            axis.plot([0.0, *self.sparsities], [self.baseline, *accuracies], marker=".")[0]
            for accuracies in self.accuracy.values()
        ]
        axis.axhline(self.baseline, color="grey", linestyle="--", linewidth=1)
        axis.set_xlabel("sparsity of the one layer pruned")
        axis.set_ylabel("accuracy")
        name_lines(axis, lines, list(self.accuracy), fontsize=8, ncols=2)
        target = Path(path)
        if not target.suffix:
            target = target.with_name(f"{target.name}.png")
        write_figure(figure, target, target.suffix.removeprefix("."))


def scan_sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    example_inputs: Any = None,
    latency: bool = False,
    progress: Callable[[str], None] = lambda name: None,
    **options: Any,
) -> Sensitivity:
    """Prune one weight after the other to each sparsity, without training, and evaluate.

    The model is left as it was. `evaluate(model)` is called in evaluation mode without gradients.
    `example_inputs` (as for `convert_to_sparse`) give multiply-adds, and with `latency` the time of
    each layer at each sparsity on this machine. `options` are those of `Pruner`: criterion,
    structure, targets, ignore. `progress` is called with each weight's name.

    Raises:
        ValueError: sparsities that do not rise within (0, 1), latency without example_inputs, or a
            schedule, ratios or an optimiser among the options.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> found = scan_sensitivity(model, lambda net: float(net(torch.ones(1, 4)).sum() * 0),
        ...                          sparsities=[0.5])
        >>> list(found.accuracy), found.costs["size"]["0.weight"]
        (['0.weight', '1.weight'], [16.0, 8.0])
    """
    levels = [check_sparsity(sparsity) for sparsity in sparsities]
    if not levels or sorted(set(levels)) != levels or levels[0] == 0.0:
        raise ValueError(
            f"expected sparsities that rise within (0, 1), got {list(sparsities)}, "
            f"try {list(SPARSITIES)}"
        )
    if {"schedule", "ratios", "optimizer"} & set(options):
        raise ValueError("expected no schedule, ratios or optimizer, got one, try sparsities")
    if latency and example_inputs is None:
        raise ValueError("expected example_inputs with latency, got None, try example_inputs=x")
    pruned = copy.deepcopy(model).eval()
    names = list(Pruner(pruned, **options).masks)
    weights = dict(pruned.named_parameters(remove_duplicate=False))
    narrowed = {key: value for key, value in options.items() if key not in ("targets", "ignore")}
    with torch.no_grad():
        baseline = evaluate(pruned)
        accuracy: dict[str, list[float]] = {}
        for name in names:
            progress(name)
            before = weights[name].detach().clone()
            accuracy[name] = []
            for sparsity in levels:
                pruner = Pruner(pruned, schedule=sparsity, targets=name, **narrowed)
                pruner.step()
                accuracy[name].append(evaluate(pruned))
                weights[name].copy_(before)
    costs = layer_costs(pruned, names, levels, example_inputs, latency, narrowed)
    return Sensitivity(baseline, levels, accuracy, costs)
