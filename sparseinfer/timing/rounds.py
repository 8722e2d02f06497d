"""The one timer: calls take turns, round by round, so that a drift of the machine hits all alike.

The calls, the clock, the rounds and the conditions of a sample are arguments. Calls that run in
other processes share the turns (`turns`) and the statistics (`Rounds`).
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from sparseinfer.timing.clock import Clock, Watch

__all__ = [
    "Plan",
    "Quartiles",
    "Rotation",
    "Rounds",
    "Sample",
    "Timing",
    "interleave",
    "nothing",
    "sample_of",
    "turns",
]

Call = Callable[[], object]

Sample = Callable[[Call, int], float]
"""(call, repeats) -> seconds of one call."""

_Found = TypeVar("_Found")

SLICE_S = 0.02
"""About the longest time for which a system leaves a processor to others."""

TRIES = 3
"""Single calls that tell how often a sample repeats one."""

MOST_INTERRUPTED = 2
"""Interrupted rounds, times those planned, after which a measurement ends, whatever its budget."""


def nothing() -> None:
    """Return at once: for a device that needs no wait, and for a call that needs no preparation."""


class Rotation:
    """Calls of the copies of one layer, in turns: each call of this runs the next.

    Copies that together exceed a cache keep each other's data out of it. `name` says which side of
    a comparison it is: `dense`, or a format.

    Example:
        >>> turns = Rotation("dense", [lambda: 1, lambda: 2])
        >>> turns(), turns(), turns()
        (1, 2, 1)
    """

    def __init__(self, name: str, calls: Sequence[Call]) -> None:
        if not calls:
            raise ValueError(f"expected at least one callable, got none for {name!r}; try a copy")
        self.name = name
        self.calls = calls
        self._next = itertools.cycle(calls)

    def __call__(self) -> object:
        return next(self._next)()

    def take(self, count: int) -> tuple[Call, ...]:
        """The next `count` calls, not called yet: to choose them then costs no measured time."""
        return tuple(itertools.islice(self._next, count))


@dataclass(frozen=True)
class Plan:
    """How long to measure: all times in seconds.

    A sample repeats a fast call until it takes `sample`. The first `warm` rounds are thrown away.
    A measurement ends after `rounds` rounds and `least` seconds; it ends earlier, but never before
    `floor` rounds, when more than `budget` seconds have passed since its first call.
    """

    rounds: int = 15
    floor: int = 5
    sample: float = 1e-3
    least: float = 0.2
    budget: float = 2.0
    warm: int = 1


@dataclass(frozen=True)
class Quartiles:
    """Lower quartile, median and upper quartile of a set of figures."""

    q1: float
    median: float
    q3: float

    @staticmethod
    def of(figures: Sequence[float]) -> Quartiles:
        """The quartiles of `figures`, by linear interpolation.

        Raises:
            ValueError: `figures` is empty.

        Example:
            >>> Quartiles.of([1.0, 2.0, 4.0])
            Quartiles(q1=1.5, median=2.0, q3=3.0)
        """
        if not figures:
            raise ValueError("expected at least one figure, got none; try a longer measurement")
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
class Rounds:
    """Seconds a call of everything that took turns, by rounds.

    `samples` holds the rounds that count, and `interrupted` those in which others had the
    processor. `inner` is how many calls a sample repeats.

    Example:
        >>> Rounds({"a": [6.0, 60.0], "b": [2.0, 20.0]}).speedup("b", over="a").median
        3.0
    """

    samples: dict[str, list[float]]
    inner: dict[str, int] = field(default_factory=dict)
    interrupted: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds count; of those that take fewer turns than others, the most."""
        return max(map(len, self.samples.values()), default=0)

    def timing(self, name: str) -> Timing:
        """The figures of one of the calls.

        Raises:
            KeyError: no call has that name.
        """
        samples = self.samples[name]
        return Timing(Quartiles.of(samples), min(samples), self.inner[name])

    def speedup(self, name: str, over: str) -> Quartiles:
        """How many times faster `name` is than the call `over`.

        The ratio is taken within each round that both took, between neighbours in time, and only
        then summarised.

        Raises:
            KeyError: no call has one of the names.
        """
        pairs = zip(self.samples[over], self.samples[name], strict=False)
        return Quartiles.of([base / other for base, other in pairs])


def turns(takes: Mapping[str, Callable[[], _Found]]) -> Iterator[dict[str, _Found]]:
    """Rounds without end: in each, everything is taken once, and what it returned is yielded.

    The order turns by one every round, so that none always comes first, or last. What is taken out
    of `takes` between two rounds takes no more turns.

    Raises:
        ValueError: there is nothing to take.

    Example:
        >>> log = []
        >>> rounds = turns({name: lambda name=name: log.append(name) for name in "ABC"})
        >>> for _ in range(3): _ = next(rounds)
        >>> "".join(log)
        'ABCBCACAB'
    """
    for done in itertools.count():
        names = list(takes)
        if not names:
            raise ValueError("expected something to time, got nothing; try at least one call")
        first = done % len(names)
        yield {name: takes[name]() for name in names[first:] + names[:first]}


def interleave(
    calls: Mapping[str, Call],
    plan: Plan,
    *,
    clock: Clock | None = None,
    sample: Sample | None = None,
    ready: Mapping[str, Callable[[], None]] | None = None,
    watch: Watch | None = None,
    alone: bool = False,
    collect: bool = True,
    decided: Callable[[Rounds], bool] = lambda found: False,
) -> Rounds:
    """Time the calls in turns, and return the samples of every round.

    Every call, and of a `Rotation` every one, runs once first: caches, workspaces, thread pools and
    compiled kernels are made then.

    Args:
        calls: what to time, by name, in the order of the first round.
        plan: how long to measure.
        clock: the clock of the budget and of samples; None: the real one.
        sample: takes a sample, given a call and repeats; None: by `clock`, see `sample_of`.
        ready: what to call before a sample of a call, outside its time.
        watch: adds up what of the time others had the processor; a round that they interrupted is
            run again, while the budget lasts. None: not watched.
        alone: whether the calls run on the calling thread alone: what others took of it is then
            known, the clock leaves it out, and no round is interrupted.
        collect: False: with the garbage collector off while samples are taken.
        decided: ends it early, told the rounds that count so far after each of them.

    Raises:
        ValueError: there is nothing to time.

    Example:
        >>> calls = {"sum": lambda: sum(range(1000)), "list": lambda: list(range(1000))}
        >>> interleave(calls, Plan(rounds=5, least=0.0)).rounds
        5
    """
    clock = clock or Clock()
    take = sample or partial(sample_of, clock=clock, alone=alone)
    prepare = {name: nothing for name in calls} | dict(ready or {})
    start = clock.wall()
    inner = {}
    for name, call in calls.items():
        prepare[name]()
        inner[name] = _repeats(call, take, plan.sample)
    found = Rounds({name: [] for name in calls}, inner, {name: [] for name in calls})
    hits: list[bool] = []

    def turn(name: str, call: Call) -> float:
        prepare[name]()
        work = partial(take, call, inner[name])
        seconds, hit = (work(), False) if watch is None else watch.run(work)
        hits.append(hit and not alone)
        return seconds

    rounds = turns({name: partial(turn, name, call) for name, call in calls.items()})
    with _collector(collect):
        for _ in range(plan.warm):
            next(rounds)
        hits.clear()
        begun = clock.wall()
        for seen in rounds:
            disturbed = any(hits)
            hits.clear()
            for name, seconds in seen.items():
                (found.interrupted if disturbed else found.samples)[name].append(seconds)
            lost = len(next(iter(found.interrupted.values())))
            now = clock.wall()
            late = now - start > plan.budget or lost >= MOST_INTERRUPTED * plan.rounds
            if found.rounds >= plan.rounds and now - begun >= plan.least:
                break
            if late and found.rounds + lost >= plan.floor:
                break
            if not disturbed and decided(found):
                break
    return found


def sample_of(
    call: Call,
    repeats: int,
    *,
    clock: Clock,
    synchronize: Callable[[], None] = nothing,
    alone: bool = False,
) -> float:
    """Seconds of one of `repeats` calls by a clock.

    `synchronize` waits for a device that runs behind Python. `alone`: as for `interleave`.

    Example:
        >>> sample_of(lambda: sum(range(1000)), 3, clock=Clock()) > 0
        True
    """
    # A loop over calls that were chosen before costs as little as one over numbers.
    calls = call.take(repeats) if isinstance(call, Rotation) else itertools.repeat(call, repeats)
    synchronize()
    start, ran, preemptions = clock.wall(), clock.thread(), clock.preemptions()
    for own in calls:
        own()
    synchronize()
    spent = clock.wall() - start
    if alone and clock.preemptions() > preemptions:
        spent = min(spent, clock.thread() - ran)
    return spent / repeats


def _repeats(call: Call, take: Sample, sample_s: float) -> int:
    """How often a sample repeats a call, after everything that only its first calls do."""
    for first in call.calls if isinstance(call, Rotation) else (call,):
        first()
    least = take(call, 1)
    for _ in range(TRIES - 1):
        # A short call that was interrupted once would pass for one that needs no repeating.
        if sample_s < least < SLICE_S:
            least = min(least, take(call, 1))
    return max(1, math.ceil(sample_s / max(1e-7, least)))


@contextmanager
def _collector(on: bool) -> Iterator[None]:
    """The garbage collector left as it is, or off: what was left behind is then collected first."""
    if on or not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
