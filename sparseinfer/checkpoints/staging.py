"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["staged"]


@contextmanager
def staged(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Give a temporary path beside each target; rename all of them, in order, once all are written.

    Until then, and if anything fails, the targets are as they were. The temporary files are there,
    empty; a target that exists passes on its permissions.

    Raises:
        OSError: a file cannot be written or renamed.
    """
    unfinished = [target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in targets]
    try:
        modes = []
        for source, target in zip(unfinished, targets, strict=True):
            source.touch()
            modes.append(stat.S_IMODE((target if target.exists() else source).stat().st_mode))
        yield unfinished
        for source, mode in zip(unfinished, modes, strict=True):
            with source.open("rb+") as stream:
                os.fsync(stream.fileno())
            # safetensors makes files that only their owner can read.
            source.chmod(mode)
        for source, target in zip(unfinished, targets, strict=True):
            os.replace(source, target)
    finally:
        for source in unfinished:
            source.unlink(missing_ok=True)
