"""Wins accuracy back after pruning: fine-tuning, distillation, BatchNorm, another try."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.prune.pruner import Pruner

__all__ = [
    "Attempt", "FineTuned", "distillation_loss", "fine_tune", "prune_to_floor",
    "reestimate_batchnorm", "stepped_rate",
]  # fmt: skip

Loss = Callable[[nn.Module, Any], Tensor]
Evaluate = Callable[[nn.Module], float]


@dataclass
class FineTuned:
    """What fine-tuning did: steps taken, accuracy after each evaluation, the best of them."""

    steps: int = 0
    accuracy: list[float] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def best(self) -> float:
        """The best accuracy; NaN where nothing was evaluated."""
        return max(self.accuracy, default=math.nan)


def fine_tune(
    model: nn.Module,
    batches: Callable[[], Iterable[Any]],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    pruner: Pruner | None = None,
    rate: str | torch.optim.lr_scheduler.LRScheduler | None = "cosine",
    evaluate: Evaluate | None = None,
    patience: int | None = None,
) -> FineTuned:
    """Train a pruned model in place, its masks held, with a learning rate that falls.

    Args:
        batches: called once an epoch; yields batches.
        loss: `loss(model, batch)`, a scalar; see `distillation_loss` for a teacher's.
        optimizer: with a smaller learning rate than the dense training's, commonly a tenth.
        pruner: stepped after every optimiser step; held on this optimiser if it holds none yet.
        rate: "cosine" falls to 0 at the end, "step" falls to a tenth after half of the steps and
            again after three quarters, a scheduler is stepped after every optimiser step, None
            leaves the rate alone.
        evaluate: called after each epoch in evaluation mode without gradients; higher is better.
        patience: stop after so many epochs without a new best accuracy, and go back to the best
            weights. Without, the last weights stay.

    Raises:
        ValueError: epochs < 1, an unknown rate, patience without evaluate, or no batches.

    Source: Loshchilov and Hutter, "SGDR", 2016, arXiv:1608.03983, for the cosine.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> pruner = Pruner(model)
        >>> pruner.prune(0.5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> mean = lambda net, x: net(x).square().mean()
        >>> fine_tune(model, lambda: [torch.ones(3, 4)] * 5, mean, optimizer, epochs=2,
        ...           pruner=pruner).steps, int((model.weight == 0).sum())
        (10, 4)
    """
    if epochs < 1:
        raise ValueError(f"expected epochs >= 1, got {epochs}, try epochs=1")
    if patience is not None and (evaluate is None or patience < 1):
        raise ValueError(f"expected patience >= 1 with evaluate, got {patience}, try patience=3")
    if pruner is not None and not pruner.holds:
        pruner.hold(optimizer)
    result = FineTuned()
    scheduler: Any = None
    best: dict[str, Tensor] | None = None
    since_best = 0
    for epoch in range(epochs):
        model.train()
        todo = list(batches())
        if not todo:
            raise ValueError(
                "expected at least one batch an epoch, got none, try a function that "
                "makes a new iterator at each call"
            )
        if epoch == 0:
            scheduler = _scheduler(rate, optimizer, epochs * len(todo))
        for batch in todo:
            optimizer.zero_grad(set_to_none=True)
            loss(model, batch).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if pruner is not None:
                pruner.step()
            result.steps += 1
        model.eval()
        if evaluate is None:
            continue
        with torch.no_grad():
            result.accuracy.append(evaluate(model))
        if patience is None:
            continue
        if result.accuracy[-1] >= result.best:
            since_best = 0
            best = copy.deepcopy(model.state_dict())
        else:
            since_best += 1
        if since_best == patience:
            result.stopped_early = True
            break
    if best is not None:
        model.load_state_dict(best)
        if pruner is not None:
            pruner.apply()
    return result


def stepped_rate(
    optimizer: torch.optim.Optimizer, steps: int, at: Sequence[float] = (0.5, 0.75), by: float = 0.1
) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning rate that is multiplied by `by` after each fraction `at` of `steps`.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        >>> scheduler = stepped_rate(optimizer, steps=4)
        >>> for _ in range(2): optimizer.step(); scheduler.step()
        >>> scheduler.get_last_lr()
        [0.1]
    """
    milestones = [round(fraction * steps) for fraction in at]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, by)


def _scheduler(rate: Any, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    if rate == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if rate == "step":
        return stepped_rate(optimizer, steps)
    if isinstance(rate, str):
        raise ValueError(f"expected 'cosine', 'step', a scheduler or None, got {rate!r}")
    return rate


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 4.0,
    weight: float = 0.9,
) -> Tensor:
    """The loss of a pruned model that learns from the dense one; all logits [batch, classes].

    weight * T**2 * KL(teacher at T || student at T) + (1 - weight) * cross entropy with the labels;
    without labels the first term alone, unweighted. T**2 keeps the gradients' size at any T.

    Raises:
        ValueError: temperature <= 0, a weight outside [0, 1], or shapes that differ.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015,
    arXiv:1503.02531.

    Example:
        >>> logits = torch.randn(3, 5)
        >>> float(distillation_loss(logits, logits).abs() < 1e-5)
        1.0
    """
    if not temperature > 0:
        raise ValueError(f"expected temperature > 0, got {temperature}, try 4")
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"expected a weight in [0, 1], got {weight}, try 0.9")
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"expected logits of one shape, got {tuple(logits.shape)} and "
            f"{tuple(teacher_logits.shape)}, try the same batch for both"
        )
    student = nn.functional.log_softmax(logits / temperature, dim=-1)
    teacher = nn.functional.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    soft = nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")
    soft = soft * temperature**2
    if labels is None:
        return soft
    return weight * soft + (1.0 - weight) * nn.functional.cross_entropy(logits, labels)


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> int:
    """Measure the running mean and variance of every BatchNorm anew; returns how many there are.

    Pruned weights have other activations than those that the statistics were taken of. The new ones
    are plain averages over the batches; nothing else of the model changes, nor does its mode.

    `forward(model, batch)` runs the model; None: model(batch).

    Raises:
        ValueError: the model has BatchNorms and there are no batches.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> reestimate_batchnorm(model, [torch.tensor([[1.0], [3.0]])])
        1
        >>> float(model[0].running_mean)
        2.0
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        # Only the norms train: dropout stays off.
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
        for batch in batches:
            _ = model(batch) if forward is None else forward(model, batch)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise ValueError("expected at least one batch, got none, try a list of batches")
    return len(norms)


@dataclass
class Attempt:
    """One way of pruning that was tried, the accuracy it gave, and whether that was enough."""

    options: dict[str, Any]
    accuracy: float
    accepted: bool


def prune_to_floor(
    model: nn.Module,
    attempts: Sequence[dict[str, Any]],
    evaluate: Evaluate,
    floor: float,
    *,
    recover: Callable[[nn.Module, Pruner], Any] | None = None,
) -> tuple[nn.Module, list[Attempt]]:
    """Try ways of pruning in turn, each on a fresh copy, until one keeps accuracy >= `floor`.

    An attempt is the keyword arguments of a `Pruner`, with `schedule` a sparsity, such as
    `[{"schedule": 0.9}, {"schedule": 0.8}, {"schedule": 0.8, "scope": "layer"}]`: write the one
    wanted most first. `recover(model, pruner)` trains the copy. Returns the pruned model and the
    attempts made; `model` itself does not change.

    Raises:
        ValueError: there are no attempts, or none reaches the floor; the message lists them.

    Example:
        >>> model = nn.Linear(10, 10)
        >>> kept = lambda net: float((net.weight != 0).float().mean())
        >>> _, tried = prune_to_floor(model, [{"schedule": 0.9}, {"schedule": 0.5}], kept, 0.4)
        >>> [attempt.accepted for attempt in tried]
        [False, True]
    """
    tried: list[Attempt] = []
    for options in attempts:
        pruned = copy.deepcopy(model)
        pruner = Pruner(pruned, **options)
        if recover is None:
            pruner.step()
        else:
            recover(pruned, pruner)
        pruner.finalize()
        pruned.eval()
        with torch.no_grad():
            accuracy = evaluate(pruned)
        tried.append(Attempt(dict(options), accuracy, accuracy >= floor))
        if tried[-1].accepted:
            return pruned.train(model.training), tried
    listed = "; ".join(f"{attempt.options}: {attempt.accuracy:.4f}" for attempt in tried)
    raise ValueError(
        f"expected an attempt with an accuracy of {floor} or more, got {listed or 'none'}, "
        "try a lower sparsity, or more training"
    )
