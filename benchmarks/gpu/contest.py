"""Times contenders in turns on rotated weights, within a budget of seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.rows import GpuResults, Missing, Timed
from sparseinfer.timing.device_time import (
    EventTimer,
    GraphTimer,
    Rotation,
    Timer,
    cache_bytes,
    copies_for,
)
from sparseinfer.timing.measure import RISK, median_interval

SAMPLE_S = 2e-3
ROUNDS = 9

Build = Callable[[], tuple[Callable[[], object], int]]
"""Makes one copy of a contender: its call, and the bytes of its weight."""


@dataclass(frozen=True)
class Case:
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


class ClockTimer:
    """Python's clock, for a rehearsal without a GPU."""

    name = "clock"

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return max(1e-9, (time.perf_counter() - start) / repeats)


def timers_for(device: torch.device) -> list[Timer]:
    """Timers in the order in which they are tried: not every library's call can be captured."""
    if device.type != "cuda":
        return [ClockTimer()]
    return [GraphTimer(device), EventTimer(device)]


@dataclass
class _Side:
    name: str
    turns: Rotation
    timer: Timer
    repeats: int
    bytes: int
    seconds: list[float]


def contest(
    case: Case, contenders: Sequence[tuple[str, Build]], device: torch.device,
    results: GpuResults, tokens: int | None = None,
) -> None:  # fmt: skip
    """Time all contenders of a case in turns, the dense one first, and add their rows.

    A contender that fails is added to what is missing; without the dense one, all are. `tokens` is
    how many one call makes, where tokens a second are asked for.
    """
    sides: list[_Side] = []
    for name, build in contenders:
        try:
            sides.append(_side(name, build, device))
        except Exception as error:  # any library may refuse in its own way: recorded, not hidden
            why = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
            results.missing.append(Missing(case.suite, case.name, name, why))
    if not sides or sides[0].name != "dense":
        return
    rounds = ROUNDS if device.type == "cuda" else 2
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            side.seconds.append(side.timer(side.turns, side.repeats))
    dense_s = statistics.median(sides[0].seconds)
    for side in sides:
        median = statistics.median(side.seconds)
        low, high = median_interval(side.seconds, RISK)
        moved = side.bytes + case.io_bytes
        gb_s = moved / median / 1e9
        results.rows.append(
            Timed(
                case.suite, case.name, case.m, case.k, case.n, case.pattern, case.sparsity,
                side.name, getattr(side.timer, "name", "clock"), len(side.turns.calls),
                1e3 * median, 1e3 * low, 1e3 * high, dense_s / median, gb_s,
                gb_s / results.copy_gb_s, moved, tokens / median if tokens else None,
            )
        )  # fmt: skip


def _side(name: str, build: Build, device: torch.device) -> _Side:
    call, weight_bytes = build()
    copies = copies_for(weight_bytes, cache_bytes(device)) if device.type == "cuda" else 2
    turns = Rotation(name, [call, *(build()[0] for _ in range(copies - 1))])
    for own in turns.calls:
        own()
    refusal: RuntimeError | None = None
    for timer in timers_for(device):
        try:
            once = timer(turns, 1)
        except RuntimeError as error:
            refusal = error
            continue
        round_s = once * (copies if isinstance(timer, GraphTimer) else 1)
        return _Side(name, turns, timer, max(1, int(SAMPLE_S / round_s)), weight_bytes, [])
    assert refusal is not None
    raise refusal


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a large copy on the device, bytes read and written: what a kernel can reach."""
    count = (1 << 29 if device.type == "cuda" else 1 << 20) // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    turns = Rotation("copy", [lambda: target.copy_(source)])
    timer = timers_for(device)[-1]
    timer(turns, 3)
    seconds = statistics.median(timer(turns, 4) for _ in range(5))
    return 2 * nbytes(source) / seconds / 1e9


def nbytes(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
