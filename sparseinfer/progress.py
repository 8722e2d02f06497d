"""A progress bar that appears only where someone waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

__all__ = ["track"]

_Item = TypeVar("_Item")

PATIENCE_S = 2.0
"""Work that ends sooner shows no bar."""


def track(items: Iterable[_Item], total: int, title: str, show: bool | None) -> Iterator[_Item]:
    """Yield `items`, with a bar on standard error.

    `show` None means: on a terminal, once the work has lasted over two seconds; True and False
    force it.

    Example:
        >>> list(track([1, 2], 2, "adding", show=False))
        [1, 2]
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield from items
        return
    start = time.monotonic()
    progress = Progress(console=Console(stderr=True, force_terminal=show), transient=True)
    task = progress.add_task(title, total=total)
    try:
        for item in items:
            if show or time.monotonic() - start > PATIENCE_S:
                progress.start()
            yield item
            progress.advance(task)
    finally:
        progress.stop()
