"""What `sparseinfer export` writes for C programs: a folder of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sparseinfer.commands.output import (
    UserError,
    check_output,
    console,
    fold,
    of_file,
    size_text,
)

if TYPE_CHECKING:
    from sparseinfer.export.engine import Engine

__all__ = ["FORMATS", "check_folder", "export_c"]

FORMATS = ("c", "amalgamation")
"""Those of `sparseinfer.export.c.folder`, which imports torch."""


def check_folder(folder: Path, format: str, force: bool) -> None:
    """Refuse an unknown format, and to replace files that are there without --force.

    Raises:
        UserError: it is, or they are.
    """
    if format not in FORMATS:
        raise UserError(
            f"expected --format of sinf, {', '.join(FORMATS)}, got {format!r}; try sinf"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder or none, got a file; try another name")
    from sparseinfer.export.c.text import file_names

    for name in file_names(format, folder.resolve().name):
        check_output(folder / name, force)


def export_c(engine: Engine, folder: Path, format: str, as_json: bool) -> None:
    """Write an engine for C, and tell what was written.

    Raises:
        UserError: plain C lacks what the model needs, or a file cannot be written.
    """
    from sparseinfer.export.c.folder import files_of, write_folder
    from sparseinfer.export.c.lacks import NotInC

    out = console()
    try:
        files = files_of(engine, format, folder.resolve().name)
    except NotInC as error:
        for missing in error.missing:
            out.print(f"missing: {fold(str(missing))}", highlight=False)
        raise UserError(str(error).split(":\n")[0]) from error
    try:
        write_folder(folder, files)
    except OSError as error:
        raise of_file(error) from error
    if as_json:
        sizes = {name: len(content) for name, content in files.items()}
        typer.echo(json.dumps({"output": str(folder), "format": format, "files": sizes}, indent=1))
        return
    if error_text := engine.report().error:
        out.print(fold(f"{error_text[:1].upper()}{error_text[1:]}."), highlight=False)
    told = ", ".join(f"{name} ({size_text(len(content))})" for name, content in files.items())
    out.print(f"Written to {fold(str(folder))}: {told}.", highlight=False)
