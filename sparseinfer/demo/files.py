"""Files the demo writes: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that no half of it is ever seen.

    Raises:
        OSError: the folder cannot be written to.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def prepare_folder(folder: Path) -> None:
    """Create the folder and prove that files can be written there, before minutes of work.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe.{os.getpid()}.tmp"
    probe.touch()
    probe.unlink()
