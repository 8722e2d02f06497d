"""The interleaved timer of the benchmarks, on a clock that only made-up work moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing import Contender, Plan, Quartiles, interleave


class FakeClock:
    """A clock that only work moves, and a log of the work."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds

        return call


def test_contenders_take_turns() -> None:
    clock = FakeClock()
    contenders = [Contender(name, [clock.work(name, 1.0)]) for name in "ABC"]
    interleave(contenders, Plan(rounds=4, floor=4, sample=0.5, least=0.0), clock=clock)
    assert "".join(clock.log).endswith("ABC" * 4)


def test_figures_are_seconds_a_call_and_ratios_of_a_round() -> None:
    clock = FakeClock()
    a, b = Contender("a", [clock.work("a", 6e-3)]), Contender("b", [clock.work("b", 2e-3)])
    comparison = interleave([a, b], Plan(rounds=15, least=0.0), clock=clock)
    assert comparison.rounds == 15
    assert comparison.timing("a").seconds.median == pytest.approx(6e-3)
    assert comparison.timing("b").minimum == pytest.approx(2e-3)
    assert comparison.timing("b").spread == pytest.approx(0.0, abs=1e-12)
    assert comparison.speedup("b", "a").median == pytest.approx(3.0)


def test_the_ratio_is_taken_within_a_round() -> None:
    """A machine that slows down by the round leaves the ratio as it is."""
    clock = FakeClock()
    slow = [1.0]

    def a() -> None:
        slow[0] *= 1.5
        clock.now += 4 * slow[0]

    def b() -> None:
        clock.now += slow[0]

    comparison = interleave([Contender("a", [a]), Contender("b", [b])], Plan(least=0), clock=clock)
    ratio = comparison.speedup("b", "a")
    assert (ratio.q1, ratio.median, ratio.q3) == pytest.approx((4.0, 4.0, 4.0))
    assert comparison.timing("a").spread > 1.0


@pytest.mark.parametrize("seconds", [1e-7, 3e-6, 4e-4, 9.9e-4])
def test_short_calls_are_repeated_until_a_sample_is_long_enough(seconds: float) -> None:
    clock = FakeClock()
    contender = Contender("a", [clock.work("a", seconds)])
    comparison = interleave([contender], Plan(sample=1e-3, least=0.0), clock=clock)
    inner = comparison.timing("a").inner
    assert 1e-3 <= inner * seconds * 1.0001 <= 1.3e-3 or inner == 2
    assert comparison.timing("a").seconds.median == pytest.approx(seconds)


def test_long_calls_are_not_repeated() -> None:
    clock = FakeClock()
    contender = Contender("a", [clock.work("a", 0.5)])
    assert interleave([contender], clock=clock).timing("a").inner == 1


def test_callables_that_rotate_go_on_where_the_last_sample_stopped() -> None:
    clock = FakeClock()
    copies = Contender("a", [clock.work(str(i), 4e-4) for i in range(5)])
    interleave([copies], Plan(sample=1e-3, least=0.0), clock=clock)
    log = "".join(clock.log)
    assert log == ("01234" * len(log))[: len(log)]


def test_time_budget_ends_the_rounds_early_but_not_below_the_floor() -> None:
    clock = FakeClock()
    contender = Contender("a", [clock.work("a", 1.0)])
    plan = Plan(rounds=100, floor=5, budget=8.0)
    assert interleave([contender], plan, clock=clock).rounds == 8
    assert interleave([contender], dataclasses.replace(plan, budget=2.0), clock=clock).rounds == 5


def test_short_measurements_go_on_for_the_least_time() -> None:
    clock = FakeClock()
    contender = Contender("a", [clock.work("a", 1e-3)])
    plan = Plan(rounds=15, least=0.1, sample=1e-3)
    assert interleave([contender], plan, clock=clock).rounds == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    "contenders",
    [[], [Contender("a", [])], [Contender("a", [int]), Contender("a", [int])]],
    ids=["none", "no callable", "same name"],
)
def test_timer_rejects_what_it_cannot_time(contenders: list[Contender]) -> None:
    with pytest.raises(ValueError, match="expected"):
        interleave(contenders)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30))
def test_quartiles_are_in_order(figures: list[float]) -> None:
    quartiles = Quartiles.of(figures)
    assert min(figures) <= quartiles.q1 <= quartiles.median <= quartiles.q3 <= max(figures)
