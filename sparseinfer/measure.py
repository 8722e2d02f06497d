"""Times two callables turn by turn, so that a drift of the machine hits both alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Comparison", "compare", "torch_threads"]

SAMPLE_S = 2e-4
"""A sample repeats a fast call until it lasts this long: long beside the clock's resolution, short
beside the slice of time that another process takes."""

ROUNDS = (3, 40)
"""Fewest and most rounds; slow calls get few."""

INTERRUPTED = 3.0
"""A round in which either side took this many times its least was interrupted, and does not count:
where threads wait for each other, one that lost its core costs milliseconds."""

DECIDED = 1.25
"""A comparison ends early once its quartiles are this factor away from the threshold."""

ENOUGH = 7
"""Rounds before that may happen."""


@dataclass(frozen=True)
class Comparison:
    """Milliseconds a call took, medians over the interleaved rounds that count, and their ratio.

    `speedup` is the median of dense over sparse of the rounds, `low` and `high` its quartiles.

    Example:
        >>> Comparison(2.0, 1.0, 2.0, 1.9, 2.1, rounds=5).speedup
        2.0
    """

    dense_ms: float
    sparse_ms: float
    speedup: float
    low: float
    high: float
    rounds: int


def compare(
    dense: Callable[[], object],
    sparse: Callable[[], object],
    *,
    budget_s: float = 0.3,
    threshold: float | None = None,
    synchronize: Callable[[], None] = lambda: None,
) -> Comparison:
    """Time `dense` against `sparse` in interleaved rounds for about `budget_s` seconds.

    It ends early where the ratio is already far from `threshold` on either side. `synchronize`
    waits for a device that runs behind Python.

    Example:
        >>> compare(lambda: sum(range(2000)), lambda: None, budget_s=0.05).speedup > 1
        True
    """
    start = time.perf_counter()
    repeats = [_repeats(call, synchronize) for call in (dense, sparse)]
    rounds: list[tuple[float, float]] = []
    while True:
        rounds.append(
            (_sample(dense, repeats[0], synchronize), _sample(sparse, repeats[1], synchronize))
        )
        if len(rounds) < ROUNDS[0]:
            continue
        result = _summary(rounds)
        decided = threshold and (
            result.low > threshold * DECIDED or result.high < threshold / DECIDED
        )
        if (
            len(rounds) == ROUNDS[1]
            or time.perf_counter() - start > budget_s
            or (decided and result.rounds >= ENOUGH)
        ):
            return result


def _summary(rounds: list[tuple[float, float]]) -> Comparison:
    limits = [INTERRUPTED * min(side) for side in zip(*rounds, strict=True)]
    counted = [pair for pair in rounds if pair[0] <= limits[0] and pair[1] <= limits[1]]
    if len(counted) < ROUNDS[0]:
        counted = rounds
    low, speedup, high = statistics.quantiles((d / s for d, s in counted), n=4, method="inclusive")
    dense_ms, sparse_ms = (1e3 * statistics.median(side) for side in zip(*counted, strict=True))
    return Comparison(dense_ms, sparse_ms, speedup, low, high, rounds=len(counted))


def _repeats(call: Callable[[], object], synchronize: Callable[[], None]) -> int:
    call()  # first use: caches, workspaces, thread pools, compiled kernels
    return max(1, math.ceil(SAMPLE_S / max(1e-7, _sample(call, 1, synchronize))))


def _sample(call: Callable[[], object], repeats: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Run with `torch.set_num_threads(threads)` (None: as it is), and set it back afterwards.

    Raises:
        ValueError: `threads` is less than 1.

    Example:
        >>> with torch_threads(1) as threads: threads
        1
    """
    before = torch.get_num_threads()
    if threads is None:
        yield before
        return
    if threads < 1:
        raise ValueError(
            f"expected threads >= 1, got {threads}; try threads=None for torch's number"
        )
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)
