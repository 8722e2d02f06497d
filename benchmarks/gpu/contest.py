"""Times contenders in turns on rotated weights, within a budget of seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from benchmarks.gpu.rows import GpuResults, Missing, Timed
from sparseinfer.timing.clock import Clock
from sparseinfer.timing.device_time import EventTimer, GraphTimer, cache_bytes, copies_for
from sparseinfer.timing.measure import RISK, median_interval
from sparseinfer.timing.rounds import Plan, Rotation, Sample, interleave, sample_of

SAMPLE_S = 2e-3
ROUNDS = 9
COPIES = 5
"""Samples of the copy that tells the bandwidth."""

Build = Callable[[], tuple[Callable[[], object], int]]
"""Makes one copy of a contender: its call, and the bytes of its weight."""


@dataclass(frozen=True)
class GpuCase:
    """A problem: its suite, its name, M, K, N, where the zeros are, and the bytes of x and y."""

    suite: str
    name: str
    m: int
    k: int
    n: int
    pattern: str
    sparsity: float
    io_bytes: int


class Budget:
    """Seconds to spend. A case is begun only where one as long as the longest so far still fits."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.end = clock() + seconds
        self.longest = 0.0

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - self._clock()

    def part(self, share: float) -> Budget:
        """A share of what is left, as a budget of its own."""
        return Budget(share * max(0.0, self.left), self._clock)

    def run(self, work: Callable[[], None]) -> bool:
        """Do it, if there is time; whether it was done."""
        if self.left <= self.longest:
            return False
        start = self._clock()
        work()
        self.longest = max(self.longest, self._clock() - start)
        return True


def timers_for(device: torch.device) -> list[Sample]:
    """Timers in the order in which they are tried: not every library's call can be captured."""
    if device.type != "cuda":  # a rehearsal without a GPU
        return [partial(sample_of, clock=Clock())]
    return [GraphTimer(device), EventTimer(device)]


@dataclass
class _Side:
    turns: Rotation
    timer: Sample
    bytes: int

    def sample(self, repeats: int) -> float:
        """Seconds of one of about so many calls; a graph runs all copies at every repeat."""
        if isinstance(self.timer, GraphTimer):
            repeats = max(1, repeats // len(self.turns.calls))
        return self.timer(self.turns, repeats)


def contest(
    case: GpuCase, contenders: Sequence[tuple[str, Build]], device: torch.device,
    results: GpuResults, tokens: int | None = None, timers: Sequence[Sample] | None = None,
) -> None:  # fmt: skip
    """Time all contenders of a case in turns, the dense one first, and add their rows.

    A contender that fails is added to what is missing; without the dense one, all are. `tokens` is
    how many one call makes, where tokens a second are asked for. `timers`: see `timers_for`, which
    is asked where they are None.
    """
    sides: dict[str, _Side] = {}
    for name, build in contenders:
        try:
            sides[name] = _side(name, build, device, timers or timers_for(device))
        except Exception as error:  # any library may refuse in its own way: recorded, not hidden
            why = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
            results.missing.append(Missing(case.suite, case.name, name, why))
    if "dense" not in sides:
        return
    found = interleave(
        {name: side.turns for name, side in sides.items()},
        _plan(ROUNDS if device.type == "cuda" else 2),
        sample=lambda turns, repeats: sides[cast(Rotation, turns).name].sample(repeats),
    )
    dense_s = found.timing("dense").seconds.median
    for name, side in sides.items():
        median = found.timing(name).seconds.median
        low, high = median_interval(found.samples[name], RISK)
        moved = side.bytes + case.io_bytes
        gb_s = moved / median / 1e9
        results.rows.append(
            Timed(
                case.suite, case.name, case.m, case.k, case.n, case.pattern, case.sparsity,
                name, getattr(side.timer, "name", "clock"), len(side.turns.calls),
                1e3 * median, 1e3 * low, 1e3 * high, dense_s / median, gb_s,
                gb_s / results.copy_gb_s, moved, tokens / median if tokens else None,
            )
        )  # fmt: skip


def _plan(rounds: int) -> Plan:
    """So many rounds, however long they take."""
    return Plan(rounds, rounds, SAMPLE_S, least=0.0, budget=math.inf, warm=0)


def _side(
    name: str, build: Build, device: torch.device, timers: Sequence[Sample]
) -> _Side:  # fmt: skip
    call, weight_bytes = build()
    copies = copies_for(weight_bytes, cache_bytes(device)) if device.type == "cuda" else 2
    turns = Rotation(name, [call, *(build()[0] for _ in range(copies - 1))])
    for own in turns.calls:
        own()
    refusal: RuntimeError | None = None
    for timer in timers:
        try:
            timer(turns, 1)
        except RuntimeError as error:
            refusal = error
            continue
        return _Side(turns, timer, weight_bytes)
    assert refusal is not None
    raise refusal


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a large copy on the device, bytes read and written: what a kernel can reach."""
    count = (1 << 29 if device.type == "cuda" else 1 << 20) // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    found = interleave(
        {"copy": lambda: target.copy_(source)}, _plan(COPIES), sample=timers_for(device)[-1]
    )
    return 2 * nbytes(source) / found.timing("copy").seconds.median / 1e9


def nbytes(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
