"""The file of a run: what was found, on which machine, by which command, at which commit."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from benchmarks.machine import describe_commit, describe_machine, describe_versions
from sparseinfer.codec import from_data, parse_file, rounded, to_text
from sparseinfer.files import write_text

SCHEMA = 1

_Record = TypeVar("_Record", bound="Record")


@dataclass(kw_only=True)
class Record:
    """What every run writes; the records of each program add their rows."""

    PROGRAM: ClassVar[str]
    """The module that writes such files."""

    date: str
    command: str
    commit: dict[str, Any]
    versions: dict[str, Any]
    machine: dict[str, Any]
    settings: dict[str, Any]
    complete: bool = False

    @classmethod
    def begin(
        cls: type[_Record], options: Sequence[str], settings: dict[str, Any], **more: Any
    ) -> _Record:
        """A record of now, here, and of the program called with these options.

        `more` are further fields, and those to be told otherwise than by `benchmarks.machine`.
        """
        head = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", cls.PROGRAM, *options]),
            "commit": describe_commit(),
            "versions": describe_versions(),
            "machine": describe_machine(),
        }
        return cls(settings=settings, **{**head, **more})

    @classmethod
    def from_json(cls: type[_Record], text: str) -> _Record:
        """Parse a file's text.

        Raises:
            ValueError: the text is not JSON, is of another schema, or a field does not fit.
        """
        try:
            return from_data(cls, parse_file(text, "schema", SCHEMA))
        except ValueError as error:
            raise ValueError(
                f"expected a result file of {cls.PROGRAM}, got one that does not fit it "
                f"({error}), try {cls.PROGRAM} again"
            ) from error

    @classmethod
    def read(cls: type[_Record], path: Path) -> _Record:
        """Read a file.

        Raises:
            OSError: it cannot be read.
            ValueError: see `from_json`.
        """
        return cls.from_json(path.read_text(encoding="utf-8"))

    @property
    def source(self) -> str:
        """The day, the commit and the command, as the sentences above a table end."""
        commit = f"commit {self.commit['hash'][:10]}" if self.commit["hash"] else "no commit"
        changes = " with changes" if self.commit["dirty"] else ""
        return f"{self.date[:10]}, {commit}{changes}: `{self.command}`."

    @property
    def reservation(self) -> str:
        """What to add to those sentences where the figures are not to be quoted; else nothing."""
        if self.settings["quick"] or not self.complete:
            return " **A partial or quick run: not for quoting.**"
        return ""

    @property
    def place(self) -> str:
        """The processor, its cores and the system."""
        machine = self.machine
        return f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}"

    def to_json(self) -> str:
        """The file's text: one row a line, five digits a figure."""
        return to_text({"schema": SCHEMA, **rounded(asdict(self))}, rows=True)

    def write(self, path: Path) -> None:
        """Write the file whole, and its folder where there is none.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.to_json())


def counted(threads: Iterable[int]) -> str:
    """Numbers of threads in words.

    Example:
        >>> counted([1, 2])
        '1 thread / 2 threads'
    """
    return " / ".join(f"{count} thread{'s' if count > 1 else ''}" for count in threads)


def shown(path: Path) -> str:
    """A file's name as a command repeats it, without the folders of this machine.

    Example:
        >>> shown(Path("results/a.json")), shown(Path("/tmp/a.json"))
        ('results/a.json', 'a.json')
    """
    return path.name if path.is_absolute() else path.as_posix()
