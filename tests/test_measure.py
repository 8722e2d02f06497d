"""Comparisons: the interval, when they end, and that looking early does not bias them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseinfer.timing import clock as clocks
from sparseinfer.timing import measure
from sparseinfer.timing.measure import (
    FEWEST,
    LOOKS,
    RISK,
    Comparison,
    compare,
    median_interval,
    summarize,
    weigh,
)


class Clock(clocks.Clock):
    """Time that passes only by `wait`, and by `interrupt`, when others have the processor."""

    def __init__(self) -> None:
        self.now = self.ran = 0.0
        self.taken = 0

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.ran += seconds

    def interrupt(self, seconds: float) -> None:
        self.now += seconds
        self.taken += 1

    def wall(self) -> float:
        return self.now

    def thread(self) -> float:
        return self.ran

    def preemptions(self) -> int:
        return self.taken


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _calls(clock: Clock, dense: Callable[[], float], sparse: Callable[[], float]):  # type: ignore[no-untyped-def]
    return lambda: clock.wait(dense()), lambda: clock.wait(sparse())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=120), st.floats(0.001, 0.4))
def test_the_interval_is_the_narrowest_that_keeps_the_risk(
    values: list[float], risk: float
) -> None:
    low, high = median_interval(values, risk)
    ordered = sorted(values)
    count = len(values)
    below = [math.comb(count, i) for i in range(count + 1)]
    k = max([1] + [k for k in range(1, (count + 1) // 2 + 1) if sum(below[:k]) <= risk * 2**count])
    assert (low, high) == (ordered[k - 1], ordered[count - k])


def test_the_interval_of_nothing() -> None:
    with pytest.raises(ValueError, match="expected at least one value"):
        median_interval([], 0.05)


def test_a_bound_is_wrong_as_rarely_as_it_says() -> None:
    draw = random.Random(1)
    samples = [[draw.expovariate(1.0) for _ in range(16)] for _ in range(2000)]
    wrong = sum(median_interval(sample, RISK)[0] > math.log(2) for sample in samples)
    assert wrong / 2000 <= RISK


def test_looking_early_does_not_add_to_the_risk(clock: Clock) -> None:
    """Of two that are equally fast, neither is found to be the faster more often than it says."""
    draw = random.Random(2)
    calls = _calls(clock, lambda: draw.uniform(1, 2), lambda: draw.uniform(1, 2))
    found = [compare(*calls, clock=clock, budget_s=1e9, threshold=1.0) for _ in range(400)]
    assert sum(one.low > 1.0 for one in found) / 400 <= RISK
    assert sum(one.high < 1.0 for one in found) / 400 <= RISK
    assert sum(one.speedup for one in found) / 400 == pytest.approx(1.0, abs=0.02)


def test_it_ends_as_soon_as_it_is_decided(clock: Clock) -> None:
    draw = random.Random(3)
    calls = _calls(clock, lambda: draw.uniform(2, 2.1), lambda: draw.uniform(1, 1.1))
    for threshold, rounds, early in ((1.05, LOOKS[0], True), (4, LOOKS[0], True), (None, 100, 0)):
        found = compare(*calls, clock=clock, budget_s=1e9, threshold=threshold)
        assert (found.rounds, found.early) == (rounds, bool(early))
        assert found.low <= found.speedup <= found.high
        assert found.dense_ms == pytest.approx(2050, abs=50)


def test_it_ends_when_the_budget_is_spent(clock: Clock) -> None:
    calls = _calls(clock, lambda: 2.0, lambda: 1.0)
    assert compare(*calls, clock=clock, budget_s=0.1, threshold=2.0).rounds == FEWEST
    rounds = compare(*calls, clock=clock, budget_s=40.0, threshold=2.0).rounds
    assert FEWEST < rounds <= 40 / 3 + 1


def test_the_two_take_turns_at_being_first(clock: Clock) -> None:
    order: list[str] = []
    compare(
        lambda: (order.append("dense"), clock.wait(1)),
        lambda: (order.append("sparse"), clock.wait(1)),
        budget_s=3.5,
        clock=clock,
    )
    assert order[-6:] == ["dense", "sparse", "sparse", "dense", "dense", "sparse"]


def test_getting_ready_is_not_timed(clock: Clock) -> None:
    entered: list[str] = []

    def enter(name: str) -> Callable[[], None]:
        return lambda: (entered.append(name), clock.wait(100))[0]  # type: ignore[func-returns-value]

    calls = _calls(clock, lambda: 1.0, lambda: 1.0)
    found = compare(*calls, clock=clock, budget_s=1.0, ready=(enter("dense"), enter("sparse")))
    assert found.dense_ms == found.sparse_ms == 1000.0
    assert entered[:2] == ["dense", "sparse"] and len(entered) == 2 + 2 * FEWEST


def test_short_calls_are_repeated_within_a_sample(clock: Clock) -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1
        clock.wait(1e-6)

    found = compare(call, call, budget_s=0.0, clock=clock)
    assert found.dense_ms == pytest.approx(1e-3)
    assert count / (2 * FEWEST) == pytest.approx(measure.SAMPLE_S / 1e-6, rel=0.05)


def test_interrupted_rounds_do_not_count() -> None:
    found = summarize([(2.0, 1.0)] * 10 + [(2.0, 50.0), (50.0, 1.0)])
    assert (found.rounds, found.speedup, found.low, found.high) == (10, 2.0, 2.0, 2.0)
    assert summarize([(1.0, 1.0), (9.0, 1.0), (1.0, 9.0)]).rounds == 3


def test_what_an_early_end_cannot_decide() -> None:
    early = Comparison(2.0, 1.0, 2.0, 1.8, 2.2, 8, early=True)
    assert early.decides(1.5) and early.decides(3.0) and not early.decides(2.0)
    assert Comparison(2.0, 1.0, 2.0, 1.8, 2.2, 100).decides(2.0)


def test_weighing_adds_times_up() -> None:
    parts = [
        (2.0, Comparison(3.0, 1.0, 3.0, 2.0, 6.0, 8)),
        (1.0, Comparison(1, 2, 0.5, 0.25, 1, 9)),
    ]
    total = weigh(parts)
    assert (total.dense_ms, total.sparse_ms, total.rounds) == (7.0, 4.0, 8)
    assert (total.speedup, total.low, total.high) == (7 / 4, 7 / 7, 7 / 2)
