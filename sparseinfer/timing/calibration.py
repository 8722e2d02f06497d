"""The cost model's parameters as fitted on this machine, in a file of the user's cache folder.

`python -m benchmarks.calibrate` writes `calibration.json` beside the kept comparisons of
`sparseinfer.timing.tuning`; the cost model reads it where processor, kernels and torch are still
those that it was fitted with.
"""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparseinfer.codec import parse_file, to_text
from sparseinfer.files import write_text
from sparseinfer.timing.rates import Model, parse
from sparseinfer.timing.tuning import cache_folder, describe_machine, read_text

__all__ = ["default_path", "load", "save"]

_log = logging.getLogger(__name__)

VERSION = 1
"""Of the file; others are ignored."""


def default_path() -> Path | None:
    """The file that the cost model reads; None where `SPARSEINFER_CACHE` is `off`.

    Example:
        >>> path = default_path()
        >>> path is None or path.name
        'calibration.json'
    """
    folder = cache_folder()
    return None if folder is None else folder / "calibration.json"


def load(path: Path | None) -> Model | None:
    """The model in a file, None where there is no file or it is of no use here, which is logged.

    Example:
        >>> load(Path("nowhere")) is None
        True
    """
    if path is None:
        return None
    try:
        mark = path.stat()
    except OSError:
        return None
    return _load(path, mark.st_mtime_ns, mark.st_size)


def save(path: Path, model: Model, error: dict[str, Any]) -> None:
    """Write a model that was fitted here, and how far it was off, for the reader's information.

    Raises:
        OSError: the file cannot be written.
    """
    entry = {
        "calibration": VERSION, "machine": describe_machine(), "model": model.as_json(),
        "error": error,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_text(entry))


# By the time of its last change too, so that a new file counts at once and a bad one is told once.
@lru_cache(maxsize=4)
def _load(path: Path, changed_ns: int, size: int) -> Model | None:
    try:
        entry = parse_file(read_text(path), "calibration", VERSION)
        # Through JSON and back, as tuples become lists.
        if entry.get("machine") != json.loads(json.dumps(describe_machine())):
            raise ValueError("it was made with another processor, torch or build of the kernels")
        return parse(entry.get("model"))
    except (OSError, ValueError) as error:
        _log.warning(
            "ignored %s: %s; the built-in cost model decides: try python -m benchmarks.calibrate",
            path, error,
        )  # fmt: skip
        return None
