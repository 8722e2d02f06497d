"""Schedules of pruning: the published formulas, both ends, the steps at which masks change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseinfer.prune import ConstantSparsity, Iterative, OneShot, PolynomialDecay, Pruner


def updates(schedule, steps=1000):
    return [step for step in range(steps) if schedule.is_update(step)]


def test_polynomial_decay_follows_the_published_formula_and_clamps():
    schedule = PolynomialDecay(0.2, 0.8, begin_step=100, end_step=300, power=3, frequency=50)
    assert schedule.sparsity(0) == pytest.approx(0.2)
    assert schedule.sparsity(100) == pytest.approx(0.2)
    assert schedule.sparsity(200) == pytest.approx(0.8 - 0.6 * 0.5**3)
    assert schedule.sparsity(300) == 0.8
    assert schedule.sparsity(10**9) == 0.8


def test_power_is_that_of_the_formula_and_three_by_default():
    linear = PolynomialDecay(0.0, 0.8, 0, 10, power=1)
    assert linear.sparsity(5) == pytest.approx(0.4)
    assert PolynomialDecay(0.0, 0.8, 0, 10).sparsity(5) == pytest.approx(0.8 * (1 - 0.125))
    assert PolynomialDecay(0.0, 0.8, 0, 10).frequency == 100


def test_updates_fall_on_the_frequency_from_begin_with_both_ends_inclusive():
    assert updates(PolynomialDecay(0.0, 0.5, 10, 40, frequency=10)) == [10, 20, 30, 40]
    assert updates(ConstantSparsity(0.5, 10, 40, frequency=10)) == [10, 20, 30, 40]
    # As tfmot has it, a frequency that does not divide never reaches the end.
    assert updates(PolynomialDecay(0.0, 0.5, 0, 25, frequency=10)) == [0, 10, 20]


def test_constant_sparsity_defaults_go_on_without_an_end():
    schedule = ConstantSparsity(0.5, begin_step=150)
    assert updates(schedule) == [150, 250, 350, 450, 550, 650, 750, 850, 950]
    assert schedule.sparsity(149) == 0.0 and schedule.sparsity(150) == 0.5
    assert schedule.end_step == -1 and schedule.last_update == 150


def test_iterative_prunes_the_same_share_of_survivors_each_round():
    schedule = Iterative(0.9, rounds=4, frequency=5, begin_step=2)
    assert updates(schedule) == [2, 7, 12, 17]
    kept = [1 - schedule.sparsity(step) for step in (2, 7, 12, 17)]
    assert kept == pytest.approx([0.1 ** (r / 4) for r in (1, 2, 3, 4)])
    assert schedule.sparsity(1) == 0.0 and schedule.sparsity(999) == 0.9


def test_one_shot_is_once():
    assert updates(OneShot(0.5, step=7)) == [7]
    assert OneShot(0.5, step=7).sparsity(6) == 0.0 and OneShot(0.5, step=7).sparsity(8) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: PolynomialDecay(-0.1, 0.5, 0, 1),
        lambda: PolynomialDecay(0.6, 0.5, 0, 1),
        lambda: PolynomialDecay(0.0, 1.0, 0, 1),
        lambda: PolynomialDecay(0.0, float("nan"), 0, 1),
        lambda: PolynomialDecay(0.0, 0.5, -1, 1),
        lambda: PolynomialDecay(0.0, 0.5, 1, 1),
        lambda: PolynomialDecay(0.0, 0.5, 5, 1),
        lambda: PolynomialDecay(0.0, 0.5, 0, -1),
        lambda: PolynomialDecay(0.0, 0.5, 0, 1, power=0),
        lambda: PolynomialDecay(0.0, 0.5, 0, 1, frequency=0),
        lambda: ConstantSparsity(1.0, 0),
        lambda: ConstantSparsity(0.5, 5, 4),
        lambda: ConstantSparsity(0.5, -1),
        lambda: Iterative(0.5, rounds=0),
        lambda: Iterative(1.5, rounds=2),
        lambda: OneShot(-0.1),
        lambda: OneShot(0.5, step=-1),
    ],
)
def test_schedules_reject_arguments_that_mean_nothing(make):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        make()


def test_a_pruner_warns_of_a_final_sparsity_that_no_update_reaches():
    with pytest.warns(UserWarning, match="at step 20, prunes .* and not 0.5"):
        Pruner(nn.Linear(4, 4), None, PolynomialDecay(0.0, 0.5, 0, 25, frequency=10))


@pytest.mark.parametrize(
    "schedule",
    [
        PolynomialDecay(0.3, 0.9, 2, 12, frequency=5),
        ConstantSparsity(0.7, 3, frequency=4),
        Iterative(0.9, rounds=3, frequency=4),
        OneShot(0.8, step=5),
    ],
)
def test_a_pruner_prunes_the_exact_count_at_each_update(schedule):
    torch.manual_seed(0)
    pruner = Pruner(nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 5)), None, schedule)
    total = 13 * 7 + 7 * 5
    wanted = 0
    for step in range(20):
        pruner.step()
        if schedule.is_update(step):
            wanted = round(schedule.sparsity(step) * total)
        assert sum(int((~mask).sum()) for mask in pruner.masks.values()) == wanted
    assert wanted == round(schedule.final * total)
