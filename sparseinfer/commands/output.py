"""What the commands share: the error a user can put right, a console, and units."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["UserError", "console", "size_text", "user_errors"]

LOG_WIDTH = 140


class UserError(Exception):
    """What the user can put right; shown as one line."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors of checkpoints and of files into `UserError`."""
    from sparseinfer.checkpoints import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename or 'output'}: {error.strerror or error}") from error


def console() -> Console:
    """A console on standard output, wide where that is a file."""
    # A log file has no width; rich would break its lines at 80 characters.
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else LOG_WIDTH)


def size_text(count: float) -> str:
    """Bytes in the unit that suits.

    Example:
        >>> size_text(1536000)
        '1.54 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
