"""One lock around the switches of the whole process: thread counts, flags, random state, warnings.

Whoever sets such a switch for a while and puts it back afterwards holds the lock meanwhile. Without
it, of two that do so at once the later one takes the other's setting for the one to go back to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["logging_at", "switching"]

_LOCK = threading.RLock()


@contextmanager
def switching() -> Iterator[None]:
    """Hold the process's switches: other threads that want to set some wait, this one may nest.

    Example:
        >>> with switching(), switching():
        ...     pass
    """
    with _LOCK:
        yield


@contextmanager
def logging_at(level: int, name: str) -> Iterator[None]:
    """Give a logger a level for a while.

    Example:
        >>> with logging_at(logging.ERROR, "sparseinfer"):
        ...     logging.getLogger("sparseinfer").warning("this is not told")
    """
    logger = logging.getLogger(name)
    with switching():
        before = logger.level
        logger.setLevel(level)
        try:
            yield
        finally:
            logger.setLevel(before)
