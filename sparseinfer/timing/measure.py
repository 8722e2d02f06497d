"""Times two callables turn by turn, so that a drift of the machine hits both alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from sparseinfer.switches import switching
from sparseinfer.timing.clock import Clock, Watch
from sparseinfer.timing.rounds import Plan, Rounds, Sample, interleave, nothing, sample_of

__all__ = [
    "CONFIDENCE",
    "Comparison",
    "compare",
    "conclude",
    "median_interval",
    "nothing",
    "summarize",
    "torch_threads",
    "weigh",
]

SAMPLE_S = 2e-4
"""A sample repeats a fast call until it lasts this long: long beside the clock's resolution, short
beside the slice of time that another process takes."""

LOOKS = (8, 16, 40, 100)
"""Rounds after which a comparison may end as it is decided; it ends at the last in any case."""

FEWEST = 3
"""Rounds that are run even where they take longer than the budget."""

RISK = 0.05
"""Chance, at most, that a bound of an interval is on the wrong side of the true median."""

CONFIDENCE = f"{1 - RISK:.0%}"

NARROW_INTERVAL = 1.1
"""Ratio of the bounds of an interval that more rounds would hardly make narrower."""

INTERRUPTED = 3.0
"""A round in which either side took this many times its least was interrupted, and does not count:
where threads wait for each other, one that lost its core costs milliseconds."""


@dataclass(frozen=True)
class Comparison:
    """Milliseconds a call took, medians over the interleaved rounds that count, and their ratio.

    `speedup` is the median of dense over sparse of the rounds, `low` and `high` the bounds of its
    confidence interval. `early` tells that it ended because the interval left the threshold out.
    `doubt` says why it is not to be believed; empty where nothing speaks against it.

    Example:
        >>> Comparison(2.0, 1.0, 2.0, 1.9, 2.1, rounds=8).speedup
        2.0
    """

    dense_ms: float
    sparse_ms: float
    speedup: float
    low: float
    high: float
    rounds: int
    early: bool = False
    doubt: str = ""

    def decides(self, threshold: float) -> bool:
        """Whether a longer comparison could say no more about `threshold` than this one."""
        return not self.early or not self.low <= threshold <= self.high

    def lasts(self, threshold: float) -> bool:
        """Whether it is worth keeping: it decided `threshold`, or its interval is narrow.

        Otherwise the machine was busy, and another day may tell more. One in doubt never is.
        """
        if self.doubt:
            return False
        return not self.low <= threshold <= self.high or self.high <= NARROW_INTERVAL * self.low


def compare(
    dense: Callable[[], object],
    sparse: Callable[[], object],
    *,
    budget_s: float = 0.3,
    threshold: float | None = None,
    synchronize: Callable[[], None] = nothing,
    ready: tuple[Callable[[], None], Callable[[], None]] = (nothing, nothing),
    sample: Sample | None = None,
    clock: Clock | None = None,
    watch: Watch | None = None,
    alone: bool = False,
) -> Comparison:
    """Time `dense` against `sparse` in interleaved rounds for about `budget_s` seconds.

    Each round times both, and the next one in the other order. `ready` is called before a sample of
    either, outside its time. `synchronize` waits for a device that runs behind Python. `sample`,
    given a call and repeats, tells the seconds of one call; None: by `clock`, the real one where
    that is None.

    `watch` adds up what of the time others had the processor (None: not watched). A round that
    they interrupted is run again, while the budget lasts. Where fewer than `FEWEST` remain all
    count, and the comparison is in doubt. `alone` tells that the calls run on the calling thread
    alone: what others took of it is then known, and is left out of the time.

    The interval needs no assumption about how times are distributed (`median_interval`). It ends
    early where the interval leaves out `threshold`; so that looking several times does not add to
    the risk, it looks at fixed counts of rounds and each look has its share of it.

    Source: Pocock, "Group sequential methods in the design and analysis of clinical trials",
    Biometrika 1977, with Bonferroni's division of the risk.

    Example:
        >>> compare(lambda: sum(range(2000)), lambda: None, budget_s=0.05).speedup > 1
        True
    """
    clock = clock or Clock()
    early = None

    def decided(found: Rounds) -> bool:
        nonlocal early
        if threshold is None or found.rounds not in LOOKS:
            return False
        result = summarize(_pairs(found.samples))
        if not result.low <= threshold <= result.high:
            early = replace(result, early=True)
        return early is not None

    found = interleave(
        {"dense": dense, "sparse": sparse},
        Plan(rounds=LOOKS[-1], floor=FEWEST, sample=SAMPLE_S, least=0.0, budget=budget_s, warm=0),
        clock=clock,
        sample=sample or partial(sample_of, clock=clock, synchronize=synchronize, alone=alone),
        ready=dict(zip(("dense", "sparse"), ready, strict=True)),
        watch=watch,
        alone=alone,
        decided=decided,
    )
    return early or conclude(_pairs(found.samples), _pairs(found.interrupted))


def _pairs(samples: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    return list(zip(samples["dense"], samples["sparse"], strict=True))


def conclude(
    rounds: Sequence[tuple[float, float]], interrupted: Sequence[tuple[float, float]]
) -> Comparison:
    """The comparison of the rounds that were not interrupted; of all, in doubt, if those are few.

    Example:
        >>> conclude([(2.0, 1.0)] * 8, [(90.0, 1.0)]).speedup, conclude([], [(90.0, 1.0)]).doubt
        (2.0, '1 of 1 rounds were interrupted')
    """
    if len(rounds) >= FEWEST or not interrupted:
        return summarize(rounds)
    every = [*rounds, *interrupted]
    doubt = f"{len(interrupted)} of {len(every)} rounds were interrupted"
    return replace(summarize(every), doubt=doubt)


def weigh(parts: Sequence[tuple[float, Comparison]]) -> Comparison:
    """The comparison of a work that consists of so many calls of each part.

    Its bounds are those of all parts at once, which is wider than its own interval.

    Example:
        >>> weigh([(2.0, Comparison(2.0, 1.0, 2.0, 2.0, 2.0, 8))]).dense_ms
        4.0
    """
    dense = sum(calls * part.dense_ms for calls, part in parts)
    sparse = sum(calls * part.dense_ms / part.speedup for calls, part in parts)
    slowest = sum(calls * part.dense_ms / part.low for calls, part in parts)
    fastest = sum(calls * part.dense_ms / part.high for calls, part in parts)
    rounds = min(part.rounds for _, part in parts)
    return Comparison(
        dense, sparse, dense / sparse, dense / slowest, dense / fastest, rounds,
        any(part.early for _, part in parts),
        next((part.doubt for _, part in parts if part.doubt), ""),
    )  # fmt: skip


def median_interval(values: Sequence[float], risk: float) -> tuple[float, float]:
    """Bounds of the median of what `values` were drawn from, each wrong with a chance of `risk`.

    They are order statistics: the median lies below the k-th least of n independent values where
    fewer than k of them fell below it, and each does so as a coin falls. Where there are too few
    values for so little risk the bounds are the least and the greatest, at a chance of 2^-n each.

    Raises:
        ValueError: there are no values.

    Source: the sign test's interval, e.g. Conover, "Practical Nonparametric Statistics", 3.2.

    Example:
        >>> median_interval(range(1, 9), risk=0.05)
        (2, 7)
    """
    if not values:
        raise ValueError("expected at least one value, got none; try more rounds")
    ordered = sorted(values)
    count = len(ordered)
    k, below = 1, 1
    while 2 * k < count and below + math.comb(count, k) <= risk * 2**count:
        below += math.comb(count, k)
        k += 1
    return ordered[k - 1], ordered[-k]


def summarize(rounds: Sequence[tuple[float, float]]) -> Comparison:
    """The comparison that rounds of (dense, sparse) seconds amount to, at most `LOOKS[-1]` of them.

    Example:
        >>> summarize([(2.0, 1.0)] * 8).speedup
        2.0
    """
    limits = [INTERRUPTED * min(side) for side in zip(*rounds, strict=True)]
    counted = [pair for pair in rounds if pair[0] <= limits[0] and pair[1] <= limits[1]]
    if len(counted) < FEWEST:
        counted = list(rounds)
    ratios = [dense / sparse for dense, sparse in counted]
    low, high = median_interval(ratios, RISK / len(LOOKS))
    dense_ms, sparse_ms = (1e3 * statistics.median(side) for side in zip(*counted, strict=True))
    return Comparison(dense_ms, sparse_ms, statistics.median(ratios), low, high, len(counted))


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Run with `torch.set_num_threads(threads)` (None: as it is), and set it back afterwards.

    One thread at a time: the number is the whole process's, and so are the times measured meanwhile
    (`sparseinfer.switches`).

    Raises:
        ValueError: `threads` is less than 1.

    Example:
        >>> with torch_threads(1) as threads: threads
        1
    """
    if threads is not None and threads < 1:
        raise ValueError(
            f"expected threads >= 1, got {threads}; try threads=None for torch's number"
        )
    with switching():
        before = torch.get_num_threads()
        if threads is None:
            yield before
            return
        torch.set_num_threads(threads)
        try:
            yield threads
        finally:
            torch.set_num_threads(before)
