"""The lottery ticket: train, prune the survivors, go back to an early state, and train again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.prune.amounts import check_sparsity
from sparseinfer.prune.criteria import Taylor
from sparseinfer.prune.pruner import Pruner

__all__ = ["Round", "Training", "lottery_ticket"]


@dataclass
class Round:
    """After a round: the fraction of the weights kept, and what `evaluate` gave."""

    kept: float
    accuracy: float | None


class Training:
    """What a training function is given: hold your optimiser with it, start at its step.

    `start` is the step that the model is at: 0, or the step rewound to, for learning rates that
    depend on it.
    """

    def __init__(self, pruner: Pruner, start: int, snapshot_at: int | None) -> None:
        self.pruner = pruner
        self.start = start
        self.snapshot: dict[str, Any] | None = None
        self._snapshot_at = snapshot_at
        self._steps = 0
        self._handles: list[Any] = []

    def hold(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold the masks through this optimiser's steps, and count them."""
        self.pruner.hold(optimizer)
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    @property
    def held(self) -> bool:
        """Whether an optimiser was held."""
        return bool(self._handles)

    def release(self) -> None:
        """Let go of the optimisers."""
        for handle in self._handles:
            handle.remove()
        self.pruner.release()

    def _after_step(self, *_: Any) -> None:
        self._steps += 1
        if self._steps == self._snapshot_at:
            self.snapshot = copy.deepcopy(self.pruner.model.state_dict())


def lottery_ticket(
    model: nn.Module,
    train: Callable[[nn.Module, Training], Any],
    *,
    amount: float = 0.5,
    rounds: int = 3,
    rewind_step: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], list[Round]]:
    """Find a sparse network that trains well from its early weights, in place.

    `rounds` times: `train(model, training)`, prune the fraction `amount` of the weights that
    survive, go back to the weights after `rewind_step` optimiser steps of the first training (0:
    the initial ones). Then a last training of the ticket. At amount 0.5 it keeps 50, 12.5 and 3.1%
    of the weights after 1, 3 and 5 rounds: masks of all rounds multiply.

    `train` has to call `training.hold(optimizer)` once its optimiser exists. `options` are those of
    `Pruner`, such as criterion, scope, ignore. Returns the masks and, for the dense training and
    each round, what was kept and the accuracy after its training.

    Raises:
        ValueError: amount outside (0, 1), rounds < 1, rewind_step < 0 or not reached by the first
            training; or a schedule or an optimiser among the options.
        RuntimeError: `train` held no optimiser.

    Source: Frankle and Carbin, "The lottery ticket hypothesis", 2018, arXiv:1803.03635; rewinding:
    Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", 2019,
    arXiv:1912.05671.

    Example:
        >>> def train(model, training):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     training.hold(optimizer)
        ...     for _ in range(3):
        ...         model(torch.ones(2, 8)).square().mean().backward()
        ...         optimizer.step()
        >>> _, found = lottery_ticket(nn.Linear(8, 8), train, amount=0.5, rounds=3)
        >>> [state.kept for state in found]
        [1.0, 0.5, 0.25, 0.125]
    """
    check_sparsity(amount, "amount")
    if amount == 0.0 or rounds < 1 or rewind_step < 0:
        raise ValueError(
            f"expected amount > 0, rounds >= 1 and rewind_step >= 0, got {amount}, {rounds} and "
            f"{rewind_step}, try amount=0.5, rounds=3, rewind_step=0"
        )
    if {"schedule", "optimizer"} & set(options):
        raise ValueError("expected no schedule and no optimizer, got one, try amount and rounds")
    pruner = Pruner(model, **options)
    early = copy.deepcopy(model.state_dict()) if rewind_step == 0 else None
    found: list[Round] = []
    for index in range(rounds + 1):
        training = Training(pruner, rewind_step if index else 0, rewind_step if not index else None)
        train(model, training)
        if not training.held:
            raise RuntimeError(
                "expected train to hold its optimizer, got no call, try training.hold(optimizer)"
            )
        training.release()
        pruner.apply()
        found.append(Round(1.0 - pruner.sparsity, _evaluated(model, evaluate)))
        if index == 0 and early is None:
            early = training.snapshot
            if early is None:
                raise ValueError(
                    f"expected {rewind_step} optimizer steps or more, got fewer, "
                    "try a smaller rewind_step"
                )
        if index < rounds:
            assert early is not None
            pruner.prune(amount)
            if isinstance(pruner.criterion, Taylor):
                pruner.criterion.reset()
            model.load_state_dict(early)
            pruner.apply()
    return pruner.masks, found


def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module], float] | None) -> float | None:
    if evaluate is None:
        return None
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return evaluate(model)
    finally:
        model.train(training)
