"""Fit the cost model's parameters to measured times, and tell how far it is off.

The model is linear in its parameters, so that each class of layers and each contender is a small
least-squares problem of its own: of the relative error, with no parameter below zero.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparseinfer.timing.rates import CLASSES, CONTENDERS, Model, Rates, work

NEAR = 1.05
"""A choice is good where it takes at most this many times the best one's time."""

LEAST_SHARE = 0.05
"""Of a time that is left for work where a call's overhead explains more of it than this leaves."""


@dataclass(frozen=True)
class Cell:
    """One layer at one density and number of threads, and the seconds that each contender took.

    `name` is its class, of `sparseinfer.timing.rates.CLASSES`.
    """

    case: str
    name: str
    M: int
    K: int
    N: int
    density: float
    threads: int
    seconds: Mapping[str, float]

    @property
    def kind(self) -> str:
        """What `sparseinfer.timing.rates.work` calls it."""
        return "linear" if self.name.startswith("linear") else self.name

    def parts(self, contender: str) -> tuple[float, ...]:
        """How often each part of a contender's work occurs."""
        return work(contender, self.kind, self.M, self.K, self.N, self.density)

    def call_seconds(self, contender: str, calls: Mapping[str, tuple[float, float]]) -> float:
        """Overhead of a call of the contender."""
        pair = calls["linear" if self.kind == "linear" else "conv"]
        return pair[contender != "dense"] / 1e6


Calls = Mapping[int, Mapping[str, tuple[float, float]]]
"""Microseconds of a call, dense and sparse, by number of threads and by `linear` and `conv`."""


def solve(parts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return x >= 0 of the least |parts x - values|: the best of all subsets of the unknowns.

    Example:
        >>> solve(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0])).round(3).tolist()
        [1.5, 0.0]
    """
    best, least = np.zeros(parts.shape[1]), float(values @ values)
    unknowns = range(parts.shape[1])
    for count in range(1, len(unknowns) + 1):
        # The last ones grow with N: they win where one case cannot tell them apart.
        for chosen in itertools.combinations(reversed(unknowns), count):
            found = np.linalg.lstsq(parts[:, chosen], values, rcond=None)[0]
            distance = float(np.sum((parts[:, chosen] @ found - values) ** 2))
            if (found >= 0).all() and distance < least * (1 - 1e-9):
                least, best = distance, np.zeros(parts.shape[1])
                best[list(chosen)] = found
    return best


def fit(cells: Sequence[Cell], calls: Calls, cache_bytes: float) -> Model:
    """Return the model that is nearest to the cells.

    Raises:
        ValueError: a class or a contender was not measured at one of the numbers of threads.
    """
    threads = {}
    for count, own_calls in sorted(calls.items()):
        table: dict[str, dict[str, tuple[float, ...]]] = {}
        for name, contender in itertools.product(CLASSES, CONTENDERS):
            own = [
                cell
                for cell in cells
                if (cell.threads, cell.name) == (count, name) and contender in cell.seconds
            ]
            if not own:
                raise ValueError(
                    f"expected {contender} measured on {name} with {count} threads, got nothing; "
                    "try the whole grid"
                )
            table.setdefault(name, {})[contender] = _fit_one(own, contender, own_calls)
        threads[count] = Rates(dict(own_calls), table)
    return Model(cache_bytes, threads)


def _fit_one(
    cells: Sequence[Cell], contender: str, calls: Mapping[str, tuple[float, float]]
) -> tuple[float, ...]:
    whole = np.array([cell.seconds[contender] for cell in cells])
    overhead = np.array([cell.call_seconds(contender, calls) for cell in cells])
    shares = np.maximum(whole - overhead, LEAST_SHARE * whole) / whole
    parts = np.array([cell.parts(contender) for cell in cells]) / whole[:, None]
    # The columns differ by orders of magnitude, which lstsq takes for linear dependence.
    sizes = np.linalg.norm(parts, axis=0)
    sizes[sizes == 0] = 1.0
    found = solve(parts / sizes, shares) / sizes
    return tuple(float(f"{1e12 * value:.4g}") for value in found)


def modelled(model: Model, cell: Cell, contender: str) -> float:
    """Return the seconds that the model gives a contender on a cell."""
    rates = model.threads[cell.threads]
    own = rates.work[cell.name][contender]
    picoseconds = sum(a * b for a, b in zip(own, cell.parts(contender), strict=True))
    return cell.call_seconds(contender, rates.calls) + picoseconds / 1e12


@dataclass(frozen=True)
class Quality:
    """How good a model is on a table of cells.

    `errors` are |log(modelled / measured)| of every time, `regrets` the measured time of the
    model's choice over that of the best one, a cell each.
    """

    errors: tuple[float, ...]
    regrets: tuple[float, ...]

    @property
    def near(self) -> float:
        """Share of the cells where the choice is within 5% of the best."""
        return sum(regret <= NEAR for regret in self.regrets) / len(self.regrets)

    def summary(self) -> dict[str, float]:
        """Figures to print and to keep."""
        return {
            "times": len(self.errors),
            "median_error": math.expm1(_quantile(self.errors, 0.5)),
            "error_of_90%": math.expm1(_quantile(self.errors, 0.9)),
            "cells": len(self.regrets),
            "choices_within_5%": self.near,
            "regret_of_95%": _quantile(self.regrets, 0.95),
            "largest_regret": max(self.regrets),
        }


def judge(pairs: Iterable[tuple[Model, Cell]]) -> Quality:
    """Return the quality of models, each on its cell."""
    errors, regrets = [], []
    for model, cell in pairs:
        guesses = {name: modelled(model, cell, name) for name in cell.seconds}
        errors += [abs(math.log(guesses[name] / taken)) for name, taken in cell.seconds.items()]
        choice = min(guesses, key=lambda name: guesses[name])
        regrets.append(cell.seconds[choice] / min(cell.seconds.values()))
    return Quality(tuple(errors), tuple(regrets))


def held_out(cells: Sequence[Cell], calls: Calls, cache_bytes: float) -> Quality:
    """Return the quality on cells that the model has not seen: each half fitted to the other.

    Raises:
        ValueError: a half lacks a class or a contender.
    """
    # At random, and then by what is fitted together, so that each half has its share of each.
    ordered = random.Random(0).sample(list(cells), len(cells))
    ordered.sort(key=lambda cell: (cell.threads, cell.name, sorted(cell.seconds)))
    halves = ordered[::2], ordered[1::2]
    pairs: list[tuple[Model, Cell]] = []
    for seen, unseen in (halves, halves[::-1]):
        model = fit(seen, calls, cache_bytes)
        pairs += [(model, cell) for cell in unseen]
    return judge(pairs)


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(values), share))
