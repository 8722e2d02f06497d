"""The one timer: turns, samples, rounds and their statistics, on a clock that only work moves."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseinfer.timing import clock as clocks
from sparseinfer.timing.clock import Watch
from sparseinfer.timing.rounds import (
    MOST_INTERRUPTED,
    Plan,
    Quartiles,
    Rotation,
    Rounds,
    interleave,
    turns,
)


class Clock(clocks.Clock):
    """A clock that only work moves, and a log of the work."""

    def __init__(self) -> None:
        self.now = self.ran = 0.0
        self.taken = 0
        self.log: list[str] = []

    def wall(self) -> float:
        return self.now

    def thread(self) -> float:
        return self.ran

    def preemptions(self) -> int:
        return self.taken

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds
            self.ran += seconds

        return call

    def interrupt(self, seconds: float) -> None:
        self.now += seconds
        self.taken += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---- turns


def test_everything_takes_its_turn_and_comes_first_as_often_as_any_other() -> None:
    log: list[str] = []
    rounds = turns({name: lambda name=name: log.append(name) for name in "ABC"})
    for _ in range(4):
        next(rounds)
    assert "".join(log) == "ABCBCACABABC"


def test_a_round_says_what_each_returned_and_leavers_take_no_more_turns() -> None:
    takes = {"a": lambda: 1, "b": lambda: 2}
    rounds = turns(takes)
    assert next(rounds) == {"a": 1, "b": 2}
    del takes["a"]
    assert next(rounds) == next(rounds) == {"b": 2}


def test_calls_take_turns(clock: Clock) -> None:
    calls = {name: clock.work(name, 1.0) for name in "ABC"}
    interleave(calls, Plan(rounds=4, floor=4, sample=0.5, least=0.0), clock=clock)
    # The first round is thrown away.
    assert "".join(clock.log).endswith("ABCBCACABABCBCA")


# ---- samples


@pytest.mark.parametrize("seconds", [1e-7, 3e-6, 4e-4, 9.9e-4])
def test_short_calls_are_repeated_until_a_sample_is_long_enough(
    seconds: float, clock: Clock
) -> None:
    found = interleave(
        {"a": clock.work("a", seconds)}, Plan(sample=1e-3, least=0.0), clock=clock
    ).timing("a")
    assert 1e-3 <= found.inner * seconds * 1.0001 <= 1e-3 + 1.0001 * seconds
    assert found.seconds.median == pytest.approx(seconds)


def test_long_calls_are_not_repeated(clock: Clock) -> None:
    assert interleave({"a": clock.work("a", 0.5)}, Plan(), clock=clock).timing("a").inner == 1


def test_calls_that_rotate_all_run_first_and_go_on_where_the_last_sample_stopped(
    clock: Clock,
) -> None:
    copies = Rotation("a", [clock.work(str(i), 4e-4) for i in range(5)])
    interleave({"a": copies}, Plan(sample=1e-3, least=0.0), clock=clock)
    log = "".join(clock.log)
    assert len(log) > 20 and log == ("01234" * len(log))[: len(log)]


def test_another_sample_is_given_the_call_and_its_repeats(clock: Clock) -> None:
    seen: list[tuple[object, int]] = []

    def sample(call: Callable[[], object], repeats: int) -> float:
        seen.append((call, repeats))
        return 1e-4

    call = clock.work("a", 1.0)
    found = interleave({"a": call}, Plan(rounds=3, sample=1e-3, least=0.0), sample=sample)
    assert seen[0] == (call, 1) and seen[-1] == (call, 10)
    assert found.samples == {"a": [1e-4] * 3} and clock.log == ["a"]


def test_what_is_made_ready_is_no_part_of_a_sample(clock: Clock) -> None:
    ready = {"a": lambda: clock.work("ready", 5.0)()}
    calls = {"a": clock.work("a", 1.0), "b": clock.work("b", 1.0)}
    found = interleave(calls, Plan(3, 3, least=0.0, warm=0), clock=clock, ready=ready)
    assert found.samples == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert clock.log.count("ready") == 4


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_off_while_samples_are_taken_where_that_is_asked(on: bool) -> None:
    states: list[bool] = []

    def sample(call: object, repeats: int) -> float:
        states.append(gc.isenabled())
        return 1.0

    interleave({"a": int}, Plan(rounds=2, least=0.0, warm=0), sample=sample, collect=on)
    assert states[-2:] == [on, on] and gc.isenabled()


# ---- rounds


def test_a_time_budget_ends_the_rounds_early_but_not_below_the_floor(clock: Clock) -> None:
    calls = {"a": clock.work("a", 1.0)}
    plan = Plan(rounds=100, floor=5, budget=9.0, warm=0)
    # Two calls come before the rounds: the first, and one that tells how long it takes.
    assert interleave(calls, plan, clock=clock).rounds == 8
    assert interleave(calls, dataclasses.replace(plan, budget=2.0), clock=clock).rounds == 5


def test_short_measurements_go_on_for_the_least_time(clock: Clock) -> None:
    plan = Plan(rounds=15, least=0.1, sample=1e-3)
    found = interleave({"a": clock.work("a", 1e-3)}, plan, clock=clock)
    assert found.rounds == pytest.approx(100, abs=1)


def test_it_ends_once_it_is_decided(clock: Clock) -> None:
    calls = {"a": clock.work("a", 1.0)}
    found = interleave(calls, Plan(), clock=clock, decided=lambda found: found.rounds == 2)
    assert found.rounds == 2


def test_rounds_that_others_interrupted_are_run_again_and_kept_apart(clock: Clock) -> None:
    calls = {"a": clock.work("a", 1.0), "b": clock.work("b", 1.0)}
    work, hits = calls["b"], iter([False, False, True, False, True])

    def disturbed() -> None:
        work()
        if next(hits, False):
            clock.interrupt(9.0)

    plan = Plan(rounds=4, floor=4, budget=1e3, least=0.0, warm=0)
    found = interleave({"a": calls["a"], "b": disturbed}, plan, clock=clock, watch=Watch(clock))
    assert found.samples == {"a": [1.0] * 4, "b": [1.0] * 4}
    assert found.interrupted == {"a": [1.0] * 2, "b": [10.0] * 2}


def test_a_machine_that_always_interrupts_ends_it(clock: Clock) -> None:
    def disturbed() -> None:
        clock.interrupt(1.0)

    plan = Plan(rounds=4, floor=4, budget=1e9, least=0.0, warm=0)
    found = interleave({"a": disturbed}, plan, clock=clock, watch=Watch(clock))
    assert found.rounds == 0 and len(found.interrupted["a"]) == MOST_INTERRUPTED * 4


def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one callable, got none for 'a'"):
        Rotation("a", [])
    with pytest.raises(ValueError, match="expected something to time, got nothing"):
        interleave({}, Plan())


# ---- statistics


def test_figures_are_seconds_a_call_and_ratios_of_a_round(clock: Clock) -> None:
    calls = {"a": clock.work("a", 6e-3), "b": clock.work("b", 2e-3)}
    found = interleave(calls, Plan(rounds=15, least=0.0), clock=clock)
    assert found.rounds == 15
    assert found.timing("a").seconds.median == pytest.approx(6e-3)
    assert found.timing("b").minimum == pytest.approx(2e-3)
    assert found.timing("b").spread == pytest.approx(0.0, abs=1e-12)
    assert found.speedup("b", over="a").median == pytest.approx(3.0)


def test_the_ratio_is_taken_within_a_round() -> None:
    """A machine that slows down by the round leaves the ratio as it is."""
    slow = [1.5**turn for turn in range(9)]
    found = Rounds({"a": [4 * seconds for seconds in slow], "b": slow}, {"a": 1, "b": 1})
    assert found.speedup("b", over="a") == Quartiles(4.0, 4.0, 4.0)
    assert found.timing("a").spread > 1.0


def test_ratios_are_of_the_rounds_that_both_took() -> None:
    found = Rounds({"a": [1.0, 10.0, 100.0], "b": [3.0, 30.0]})
    assert found.rounds == 3
    assert found.speedup("a", over="b") == Quartiles(3.0, 3.0, 3.0)


def test_a_slow_call_is_told_from_a_fast_one_by_the_real_clock() -> None:
    calls = {"slow": lambda: time.sleep(3e-3), "fast": lambda: None}
    found = interleave(calls, Plan(rounds=400, floor=15, least=0.0, budget=0.05))
    assert found.timing("slow").minimum >= 3e-3 and found.rounds >= 15
    assert found.speedup("fast", over="slow").median > 10
    assert found.speedup("slow", over="fast").median < 0.1


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30))
def test_quartiles_are_in_order(figures: list[float]) -> None:
    quartiles = Quartiles.of(figures)
    assert min(figures) <= quartiles.q1 <= quartiles.median <= quartiles.q3 <= max(figures)
