"""One lock around the switches of the whole process: thread counts, flags, random state, warnings.

Whoever sets such a switch for a while and puts it back afterwards holds the lock meanwhile. Without
it, of two that do so at once the later one takes the other's setting for the one to go back to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["switching"]

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
