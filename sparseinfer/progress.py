"""A progress bar that appears only where someone waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "track"]

_Item = TypeVar("_Item")

PATIENCE_S = 2.0
"""Work that ends sooner shows no bar."""

TICK_S = 0.5


class Bar:
    """A bar on standard error for `total` steps of work, gone when the block ends.

    `show` None means: on a terminal, once the work has lasted over two seconds; True and False
    force it. It is drawn at each step and at `tick`, by no thread of its own, as something may be
    timed meanwhile.

    Example:
        >>> with Bar("adding", 2, show=False) as bar:
        ...     bar.advance()
    """

    def __init__(self, title: str, total: int, show: bool | None) -> None:
        self._always = show is True
        self._progress: Progress | None = None
        if show or (show is None and sys.stderr.isatty()):
            from rich.console import Console
            from rich.progress import Progress

            console = Console(stderr=True, force_terminal=show)
            self._progress = Progress(console=console, transient=True, auto_refresh=False)
            self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Bar:
        self._start = time.monotonic()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._progress is not None:
            self._progress.stop()

    def advance(self) -> None:
        """Count one step as done."""
        if self._progress is not None:
            self._progress.advance(self._task)
            self._draw()

    def describe(self, title: str) -> None:
        """Say what is done now."""
        if self._progress is not None:
            self._progress.update(self._task, description=title)
            self._draw()

    def tick(self) -> None:
        """Draw again where the last time is long ago; called when nothing is being timed."""
        if self._progress is not None and time.monotonic() - self._drawn > TICK_S:
            self._draw()

    def _draw(self) -> None:
        if self._progress is None:
            return
        self._drawn = time.monotonic()
        if self._always or time.monotonic() - self._start > PATIENCE_S:
            self._progress.start()
            self._progress.refresh()


def track(items: Iterable[_Item], total: int, title: str, show: bool | None) -> Iterator[_Item]:
    """Yield `items`, `total` of them, and count each on a `Bar` when the next is asked for.

    Example:
        >>> list(track([1, 2], 2, "adding", show=False))
        [1, 2]
    """
    with Bar(title, total, show) as bar:
        for item in items:
            yield item
            bar.advance()
