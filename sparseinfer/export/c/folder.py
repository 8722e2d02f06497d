"""A model for C programs, as a folder of files that is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from sparseinfer.export.c.amalgamation import amalgamate
from sparseinfer.export.c.library import object_files
from sparseinfer.export.c.text import identifier
from sparseinfer.export.engine import Engine
from sparseinfer.files import staged_folder

__all__ = ["FORMATS", "files_of", "write_folder"]

FORMATS = ("c", "amalgamation")


def files_of(engine: Engine, format: str, name: str) -> dict[str, bytes]:
    """The files that a format has of a model, by their names.

    `c` is the model file as an object for the library, `amalgamation` plain C that needs no
    library. `name` becomes what symbols and files begin with.

    Raises:
        NotInC: plain C lacks what the model needs.
        ValueError: there is no such format.

    Example:
        >>> import sparseinfer, torch
        >>> model = torch.nn.Linear(8, 4).eval()
        >>> engine = sparseinfer.compile(model, torch.zeros(2, 8), baselines=())
        >>> sorted(files_of(engine, "amalgamation", "net"))
        ['net.S', 'net.bin', 'sparseinfer.c', 'sparseinfer.h']
    """
    file = bytes(engine.file.numpy())
    if format == "c":
        return object_files(file, engine.facts(), identifier(name))
    if format == "amalgamation":
        return amalgamate(file, identifier(name))
    raise ValueError(f"expected a format of {', '.join(FORMATS)}, got {format!r}; try c")


def write_folder(folder: str | os.PathLike[str], files: dict[str, bytes]) -> None:
    """Write files into a folder, all of them or none.

    Raises:
        OSError: one cannot be written.
    """
    with staged_folder(Path(folder)) as stage:
        for name, content in files.items():
            (stage / name).write_bytes(content)
