"""What the commands share: the errors they end with, names made safe to print, and units."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

__all__ = [
    "MachineError", "UserError", "check_output", "console", "fold", "percent", "printable",
    "size_text", "user_errors",
]  # fmt: skip

LOG_WIDTH = 140

_OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.EBUSY, errno.EPIPE,
    errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EXDEV,
}  # fmt: skip
"""What the system refuses; all other errors of files are those of the path that was given."""


class UserError(Exception):
    """What the user can put right; shown as one line."""

    code = 2


class MachineError(UserError):
    """What the machine refuses: a full disk, missing rights, too little memory."""

    code = 1


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors of checkpoints, of files and of memory into `UserError`."""
    from sparseinfer.checkpoints import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except RecursionError as error:
        raise UserError("expected a checkpoint, got one nested too deeply; try --key") from error
    except OSError as error:
        raise of_file(error) from error


def of_file(error: OSError) -> UserError:
    """The error of a file as the command shows it."""
    text = f"{error.filename or 'output'}: {error.strerror or error}"
    return MachineError(text) if error.errno in _OF_THE_MACHINE else UserError(text)


def check_output(path: Path, force: bool) -> None:
    """Refuse to replace what is there: a file without --force, all that is no file in any case.

    Raises:
        UserError: something is there.
    """
    from sparseinfer.files import check_target

    try:
        there = check_target(path).exists()
    except OSError as error:
        raise of_file(error) from error
    if there and not force:
        raise UserError(
            f"{path}: expected a name for a new file, got one that is there; "
            "try another, or --force to replace it"
        )


def printable(text: str) -> str:
    """A text with every character that is not to be seen spelled out: no name moves the cursor.

    Example:
        >>> print(printable("fc" + chr(27) + "[2J.weight" + chr(0x202E)))
        fc\\x1b[2J.weight\\u202e
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def fold(text: str) -> str:
    """A name or a path as rich is to print it: nothing in it is markup."""
    return escape(printable(text))


def percent(part: int, whole: int) -> str:
    """A share that is written as none or all only where it is.

    Example:
        >>> percent(0, 9), percent(80, 10**6), percent(999_999, 10**6), percent(1, 8)
        ('0.0%', '<0.1%', '>99.9%', '12.5%')
    """
    share = part / max(1, whole)
    if 0 < part and share < 0.0005:
        return "<0.1%"
    if part < whole and share >= 0.9995:
        return ">99.9%"
    return f"{share:.1%}"


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
