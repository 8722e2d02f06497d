"""The clock that measurements read, and how much of the measured time others had the processor."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

if sys.platform != "win32":
    import resource

__all__ = ["BUSY", "Clock", "Watch"]

_Found = TypeVar("_Found")

BUSY = 0.1
"""Share of the time that others may take of one measurement: more, and it was interrupted."""


class Clock:
    """What a measurement reads of time and of the machine: this one is the real one.

    Whatever measures takes a clock as an argument, so that time can be made up.

    Example:
        >>> clock = Clock()
        >>> clock.wall() <= clock.wall()
        True
    """

    def wall(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def thread(self) -> float:
        """Seconds that the calling thread has been running on a processor."""
        return time.thread_time()

    def preemptions(self) -> int:
        """How often a thread of this process was taken off its processor for another's sake."""
        if sys.platform == "win32":
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    def load(self) -> float | None:
        """Processes that run or want to, the average of the last minute; None where unknown."""
        try:
            return os.getloadavg()[0]
        except (AttributeError, OSError):
            return None


@dataclass
class Watch:
    """Runs pieces of work, and adds up how long they took and what of it others took.

    A thread that waits has no processor either, but only where another took it away was it
    interrupted: by the system's count of that.

    Example:
        >>> watch = Watch()
        >>> watch.run(lambda: 6 * 7)[0], watch.wall_s > 0
        (42, True)
    """

    clock: Clock = field(default_factory=Clock)
    wall_s: float = 0.0
    lost_s: float = 0.0

    @property
    def share(self) -> float:
        """Share of the time that others took, 0 to 1."""
        return self.lost_s / self.wall_s if self.wall_s > 0 else 0.0

    def run(self, work: Callable[[], _Found]) -> tuple[_Found, bool]:
        """What `work` returns, and whether others took more than `BUSY` of its time."""
        clock = self.clock
        wall, thread, preemptions = clock.wall(), clock.thread(), clock.preemptions()
        found = work()
        spent = clock.wall() - wall
        lost = 0.0
        if clock.preemptions() > preemptions:
            lost = max(0.0, spent - (clock.thread() - thread))
        self.wall_s += spent
        self.lost_s += lost
        return found, lost > BUSY * spent

    def add(self, other: Watch) -> None:
        """Count what another one watched too."""
        self.wall_s += other.wall_s
        self.lost_s += other.lost_s
