"""Latency and size of the demo's models, all measured in one process, turn by turn."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# A sample repeats fast calls until it lasts this long: clock and interruptions then weigh little.
SAMPLE_S = 1e-3
MIN_ROUNDS = 15
MAX_ROUNDS = 400


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call: median and quartiles of the rounds."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


@dataclass(frozen=True)
class Ratio:
    """How many times faster one model is than another.

    Median and quartiles of the ratio of the two times of one round.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Race:
    """The times of several calls in seconds, one row a round."""

    names: tuple[str, ...]
    seconds: np.ndarray

    def latency(self, name: str) -> Latency:
        """Return the latency of one of the calls."""
        times = self.seconds[:, self.names.index(name)] * 1e3
        low, median, high = np.percentile(times, (25, 50, 75))
        return Latency(float(median), float(low), float(high), len(times))

    def speedup(self, slow: str, fast: str) -> Ratio:
        """Return how many times faster `fast` ran than `slow`."""
        times = self.seconds
        ratios = times[:, self.names.index(slow)] / times[:, self.names.index(fast)]
        low, median, high = np.percentile(ratios, (25, 50, 75))
        return Ratio(float(median), float(low), float(high))


@torch.inference_mode()
def race(calls: Mapping[str, Callable[[], object]], budget_s: float) -> Race:
    """Time the calls in interleaved rounds for about `budget_s` seconds.

    A drift of the machine hits all of them alike; the order turns by one every round, so that none
    always follows the same other.
    """
    names = tuple(calls)
    start = time.perf_counter()
    repeats = {}
    for name in names:
        calls[name]()  # First use: caches, workspaces, thread pools.
        repeats[name] = max(1, math.ceil(SAMPLE_S / max(1e-7, _sample(calls[name], 1))))
    rounds: list[list[float]] = []
    while len(rounds) < MAX_ROUNDS:
        if len(rounds) >= MIN_ROUNDS and time.perf_counter() - start > budget_s:
            break
        shift = len(rounds) % len(names)
        times = {
            name: _sample(calls[name], repeats[name]) for name in names[shift:] + names[:shift]
        }
        rounds.append([times[name] for name in names])
    return Race(names, np.array(rounds))


def _sample(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def bytes_in_memory(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved(model: nn.Module) -> bytes:
    """Return the model's `state_dict` as `torch.save` writes it."""
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    return stream.getvalue()
