"""Interleaved timing: contenders take turns, so that a drift of the machine hits all alike."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]

CALIBRATION_TRIES = 3
"""Samples taken before a repeat count is accepted: the smallest of them decides."""


@dataclass(frozen=True)
class Contender:
    """A named piece of work, given as one callable or as several that take turns.

    Several callables do the same work on copies of the same data: rotating through copies that
    together exceed the last-level cache keeps the data cold.
    """

    name: str
    calls: Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Plan:
    """How long to measure: all times in seconds.

    A measurement ends after ``rounds`` rounds and ``least`` seconds; it ends earlier, but never
    before ``floor`` rounds, when ``budget`` seconds have passed.
    """

    rounds: int = 15
    floor: int = 5
    sample: float = 1e-3
    least: float = 0.2
    budget: float = 2.0


@dataclass(frozen=True)
class Quartiles:
    """Lower quartile, median and upper quartile of a set of figures."""

    q1: float
    median: float
    q3: float

    @staticmethod
    def of(figures: Sequence[float]) -> Quartiles:
        """Return the quartiles of ``figures`` by linear interpolation.

        Raises:
            ValueError: ``figures`` is empty.
        """
        if not figures:
            raise ValueError("expected at least one figure, got none, try a longer measurement")
        if len(figures) == 1:
            return Quartiles(figures[0], figures[0], figures[0])
        q1, median, q3 = statistics.quantiles(figures, n=4, method="inclusive")
        return Quartiles(q1, median, q3)


@dataclass(frozen=True)
class Timing:
    """Seconds a call took: quartiles and minimum over the rounds."""

    seconds: Quartiles
    minimum: float
    inner: int
    """Calls in one sample."""

    @property
    def spread(self) -> float:
        """Interquartile range in seconds."""
        return self.seconds.q3 - self.seconds.q1


@dataclass(frozen=True)
class Comparison:
    """Samples of every contender, round by round: seconds a call."""

    samples: dict[str, list[float]]
    inner: dict[str, int]

    @property
    def rounds(self) -> int:
        """Number of rounds, the same for every contender."""
        return len(next(iter(self.samples.values())))

    def timing(self, name: str) -> Timing:
        """Return the figures of the contender called ``name``.

        Raises:
            KeyError: no contender has that name.
        """
        samples = self.samples[name]
        return Timing(Quartiles.of(samples), min(samples), self.inner[name])

    def speedup(self, name: str, baseline: str) -> Quartiles:
        """Return how many times faster ``name`` is than ``baseline``.

        The ratio is taken within each round, between neighbours in time, and only then summarised.

        Raises:
            KeyError: no contender has one of the names.
        """
        pairs = zip(self.samples[baseline], self.samples[name], strict=True)
        return Quartiles.of([base / other for base, other in pairs])


class _Sampler:
    """Takes samples of one contender, continuing its rotation where the last sample stopped."""

    def __init__(self, contender: Contender, clock: Clock) -> None:
        self._calls = itertools.cycle(contender.calls)
        self._clock = clock
        self.inner = 1

    def elapsed(self) -> float:
        calls = tuple(itertools.islice(self._calls, self.inner))
        start = self._clock()
        for call in calls:
            call()
        return self._clock() - start

    def calibrate(self, sample: float) -> None:
        while True:
            elapsed = math.inf
            for _ in range(CALIBRATION_TRIES):
                elapsed = min(elapsed, self.elapsed())
                if elapsed < sample:
                    break
            if elapsed >= sample:
                return
            # Grow by at most ten times: a single call is too short to be timed well.
            wanted = math.ceil(1.1 * self.inner * sample / elapsed) if elapsed > 0 else math.inf
            self.inner = int(max(self.inner + 1, min(wanted, 10 * self.inner)))


def interleave(
    contenders: Sequence[Contender], plan: Plan | None = None, *, clock: Clock = time.perf_counter
) -> Comparison:
    """Time contenders in turns, A B A B ..., and return the samples of every round.

    Every callable runs once first; then each contender's calls are repeated until a sample takes
    ``plan.sample`` seconds; then one round is run and thrown away. The garbage collector is off
    while samples are taken.

    Args:
        contenders: what to time, in the order of the turns; the names differ.
        plan: how long to measure.
        clock: returns the time in seconds.

    Raises:
        ValueError: there is no contender, one has no callable, or two have the same name.

    Example:
        >>> a = Contender("sum", [lambda: sum(range(1000))])
        >>> b = Contender("range", [lambda: list(range(1000))])
        >>> interleave([a, b], Plan(rounds=5, least=0.0)).rounds
        5
    """
    plan = plan or Plan()
    names = [contender.name for contender in contenders]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected contenders with names of their own, got {names}")
    for contender in contenders:
        if not contender.calls:
            raise ValueError(f"expected at least one callable, got none for {contender.name!r}")
        for call in contender.calls:
            call()
    samplers = {contender.name: _Sampler(contender, clock) for contender in contenders}
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for sampler in samplers.values():
            sampler.calibrate(plan.sample)
        for sampler in samplers.values():
            sampler.elapsed()
        start = clock()
        for done in itertools.count(1):
            for name, sampler in samplers.items():
                samples[name].append(sampler.elapsed() / sampler.inner)
            spent = clock() - start
            if done >= plan.rounds and spent >= plan.least:
                break
            if done >= plan.floor and spent >= plan.budget:
                break
    finally:
        if collecting:
            gc.enable()
    return Comparison(samples, {name: sampler.inner for name, sampler in samplers.items()})
