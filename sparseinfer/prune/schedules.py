"""When masks change while a model trains, and how sparse they become."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

from sparseinfer.prune.amounts import check_sparsity

__all__ = [
    "ConstantSparsity", "Iterative", "OneShot", "PolynomialDecay", "Schedule", "warn_of_missed_end",
]  # fmt: skip


class Schedule(Protocol):
    """What a `Pruner` asks a schedule; training steps count from 0."""

    @property
    def final(self) -> float:
        """The sparsity that it leads to."""

    @property
    def last_update(self) -> int:
        """The step after which a model counts as pruned."""

    def sparsity(self, step: int) -> float:
        """The fraction of the weights that is pruned at `step`."""

    def is_update(self, step: int) -> bool:
        """Whether masks change at `step`."""


def _check_steps(begin_step: int, end_step: int, frequency: int, open_end: bool) -> None:
    if begin_step < 0:
        raise ValueError(f"expected begin_step >= 0, got {begin_step}, try begin_step=0")
    if end_step < begin_step and not (open_end and end_step == -1):
        raise ValueError(
            f"expected end_step >= begin_step, got begin_step={begin_step}, end_step={end_step}, "
            "try end_step=the number of training steps minus one"
            + (", or -1 for no end" if open_end else "")
        )
    if frequency < 1:
        raise ValueError(f"expected frequency >= 1, got {frequency}, try frequency=100")


def _in_turn(step: int, begin_step: int, end_step: int, frequency: int) -> bool:
    inside = step >= begin_step and (end_step < 0 or step <= end_step)
    return inside and (step - begin_step) % frequency == 0


def warn_of_missed_end(schedule: Schedule) -> None:
    """Warn of a schedule whose last update does not reach its final sparsity.

    Example:
        >>> warn_of_missed_end(OneShot(0.5))
    """
    reached = schedule.sparsity(schedule.last_update)
    if reached < schedule.final:
        warnings.warn(
            f"the schedule's last update, at step {schedule.last_update}, prunes {reached:.4g} and "
            f"not {schedule.final:g}; try a frequency that divides end_step - begin_step",
            stacklevel=3,
        )


@dataclass(frozen=True)
class ConstantSparsity:
    """The same sparsity at every update, from `begin_step` to `end_step` (-1: no end), inclusive.

    Arguments and meaning are those of TensorFlow Model Optimization's `ConstantSparsity`: an update
    at each step with (step - begin_step) % frequency == 0.

    Raises:
        ValueError: target_sparsity outside [0, 1), begin_step < 0, end_step before begin_step and
            not -1, or frequency < 1.

    Example:
        >>> schedule = ConstantSparsity(0.5, begin_step=10, end_step=30, frequency=10)
        >>> [step for step in range(50) if schedule.is_update(step)]
        [10, 20, 30]
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        check_sparsity(self.target_sparsity, "target_sparsity")
        _check_steps(self.begin_step, self.end_step, self.frequency, open_end=True)

    @property
    def final(self) -> float:
        """The sparsity that it leads to."""
        return self.target_sparsity

    @property
    def last_update(self) -> int:
        """The first update: the later ones keep the sparsity."""
        return self.begin_step

    def sparsity(self, step: int) -> float:
        """The fraction of the weights that is pruned at `step`: 0 before begin_step."""
        return self.target_sparsity if step >= self.begin_step else 0.0

    def is_update(self, step: int) -> bool:
        """Whether masks change at `step`."""
        return _in_turn(step, self.begin_step, self.end_step, self.frequency)


@dataclass(frozen=True)
class PolynomialDecay:
    """Sparsity that grows from initial to final, fast at first, between two training steps.

    At step t, with p = (t - begin_step) / (end_step - begin_step) clamped to [0, 1], it is
    final_sparsity + (initial_sparsity - final_sparsity) * (1 - p) ** power. Both ends are
    inclusive; an update at each step with (step - begin_step) % frequency == 0.

    Arguments and meaning are those of TensorFlow Model Optimization's `PolynomialDecay`. There as
    here, a frequency that does not divide end_step - begin_step never reaches final_sparsity: a
    `Pruner` warns of it.

    Raises:
        ValueError: unless 0 <= initial_sparsity <= final_sparsity < 1 (masks only grow),
            0 <= begin_step < end_step, power > 0, frequency >= 1.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878.

    Example:
        >>> schedule = PolynomialDecay(0.0, 0.9, begin_step=0, end_step=100, frequency=10)
        >>> [round(schedule.sparsity(step), 3) for step in (0, 50, 100, 1000)]
        [0.0, 0.787, 0.9, 0.9]
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3.0
    frequency: int = 100

    def __post_init__(self) -> None:
        check_sparsity(self.final_sparsity, "final_sparsity")
        if not 0.0 <= self.initial_sparsity <= self.final_sparsity:
            raise ValueError(
                "expected 0 <= initial_sparsity <= final_sparsity (masks only grow), got "
                f"{self.initial_sparsity} and {self.final_sparsity}, try initial_sparsity=0.0"
            )
        _check_steps(self.begin_step, self.end_step, self.frequency, open_end=False)
        if self.end_step == self.begin_step:
            raise ValueError(
                f"expected end_step > begin_step, got {self.end_step} for both, try OneShot"
            )
        if not self.power > 0:
            raise ValueError(f"expected power > 0, got {self.power}, try power=3")

    @property
    def final(self) -> float:
        """The sparsity that it leads to."""
        return self.final_sparsity

    @property
    def last_update(self) -> int:
        """The last step at which masks change."""
        return self.end_step - (self.end_step - self.begin_step) % self.frequency

    def sparsity(self, step: int) -> float:
        """The fraction of the weights that is pruned at `step`."""
        progress = (step - self.begin_step) / (self.end_step - self.begin_step)
        left = 1.0 - min(1.0, max(0.0, progress))
        change = self.initial_sparsity - self.final_sparsity
        return self.final_sparsity + change * left**self.power

    def is_update(self, step: int) -> bool:
        """Whether masks change at `step`."""
        return _in_turn(step, self.begin_step, self.end_step, self.frequency)


@dataclass(frozen=True)
class OneShot:
    """All at once, at one step.

    Raises:
        ValueError: a sparsity outside [0, 1), or step < 0.

    Example:
        >>> OneShot(0.5).is_update(0), OneShot(0.5).is_update(1)
        (True, False)
    """

    final: float
    step: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.final)
        _check_steps(self.step, self.step, 1, open_end=False)

    @property
    def last_update(self) -> int:
        """The step at which masks change."""
        return self.step

    def sparsity(self, step: int) -> float:
        """The fraction of the weights that is pruned at `step`."""
        return self.final if step >= self.step else 0.0

    def is_update(self, step: int) -> bool:
        """Whether masks change at `step`."""
        return step == self.step


@dataclass(frozen=True)
class Iterative:
    """Rounds of pruning with fine-tuning between: each round prunes the same share of survivors.

    After round r of `rounds`, at step begin_step + r * frequency, 1 - (1 - final) ** ((r + 1) /
    rounds) of the weights are pruned.

    Raises:
        ValueError: a sparsity outside [0, 1), rounds < 1, frequency < 1, or begin_step < 0.

    Source: Han et al., "Learning both weights and connections", 2015, arXiv:1506.02626.

    Example:
        >>> schedule = Iterative(0.875, rounds=3, frequency=10)
        >>> [round(schedule.sparsity(step), 3) for step in (0, 10, 20, 30)]
        [0.5, 0.75, 0.875, 0.875]
    """

    final: float
    rounds: int
    frequency: int = 100
    begin_step: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.final)
        if self.rounds < 1:
            raise ValueError(f"expected rounds >= 1, got {self.rounds}, try rounds=5")
        _check_steps(self.begin_step, self.begin_step, self.frequency, open_end=False)

    @property
    def last_update(self) -> int:
        """The step of the last round."""
        return self.begin_step + (self.rounds - 1) * self.frequency

    def sparsity(self, step: int) -> float:
        """The fraction of the weights that is pruned at `step`."""
        done = min(self.rounds, (step - self.begin_step) // self.frequency + 1)
        if done >= self.rounds:
            return self.final
        return 0.0 if done < 1 else 1.0 - (1.0 - self.final) ** (done / self.rounds)

    def is_update(self, step: int) -> bool:
        """Whether masks change at `step`."""
        return _in_turn(step, self.begin_step, self.last_update, self.frequency)
