"""The result file: what a measurement found, on which machine, by which command."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer.timing.rounds import Quartiles, Rounds, Timing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One contender against dense PyTorch on one problem."""

    suite: str
    group: str
    case: str
    op: str
    m: int
    k: int
    n: int
    pattern: str
    sparsity: float
    nnz: int
    threads: int
    promised: bool
    """Whether the case belongs to the table whose geometric mean the project promises."""
    contender: str
    kernel: str | None
    """Registry row that ran; None where the contender is not one of ours."""
    rounds: int
    dense: Timing
    sparse: Timing
    speedup: Quartiles
    """Dense time over the contender's time, ratio taken round by round."""
    dense_bytes: int
    packed_bytes: int | None
    copies: tuple[int, int]
    """Copies of the dense and of the packed weight that the calls rotated through."""


@dataclass(frozen=True)
class Failure:
    """A contender that could not be measured, and why."""

    suite: str
    case: str
    pattern: str
    sparsity: float
    threads: int
    error: str


@dataclass(frozen=True)
class Check:
    """A geometric mean (or another summary) of the rows, beside what was promised for it."""

    name: str
    sparsity: float
    threads: int
    value: float
    cases: int
    """Number of rows summarised."""
    expected: float | None = None
    at_most: bool = False
    """Whether less is better: the value is met when it is not above ``expected``."""

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None where nothing was promised."""
        if self.expected is None:
            return None
        return self.value <= self.expected if self.at_most else self.value >= self.expected


@dataclass
class Results:
    """Everything one run of the benchmarks writes."""

    date: str
    command: str
    commit: dict[str, Any]
    versions: dict[str, Any]
    machine: dict[str, Any]
    settings: dict[str, Any]
    complete: bool = False
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    summary: list[Check] = field(default_factory=list)


def make_row(found: Rounds, name: str, *, baseline: str = "dense", **facts: Any) -> Row:
    """Return the row of contender ``name`` of the rounds, with the facts given by keyword."""
    return Row(
        contender=name,
        rounds=found.rounds,
        dense=found.timing(baseline),
        sparse=found.timing(name),
        speedup=found.speedup(name, over=baseline),
        **facts,
    )


def geometric_mean(figures: Iterable[float]) -> float:
    """Return the geometric mean.

    Raises:
        ValueError: there are no figures, or one is not above zero.
    """
    logs = [math.log(figure) for figure in figures]
    if not logs:
        raise ValueError("expected at least one figure, got none, try a suite that has the rows")
    return math.exp(sum(logs) / len(logs))


def _rounded(value: Any) -> Any:
    """Cut floats to five significant digits: more is noise, and the file is committed."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def to_json(results: DataclassInstance) -> str:
    """Return the result file's text: one row a line, so that a diff shows the rows that moved.

    `results` is a Results, or another dataclass of plain data whose lists are of rows.
    """
    parts = []
    for key, value in _rounded(dataclasses.asdict(results)).items():
        if isinstance(value, list) and value:
            lines = ",\n".join("    " + json.dumps(item) for item in value)
            parts.append(f'  "{key}": [\n{lines}\n  ]')
        else:
            body = json.dumps(value, indent=2).replace("\n", "\n  ")
            parts.append(f'  "{key}": {body}')
    return "{\n" + f'  "schema": {SCHEMA},\n' + ",\n".join(parts) + "\n}\n"


def _timing(value: dict[str, Any]) -> Timing:
    return Timing(Quartiles(**value["seconds"]), value["minimum"], value["inner"])


def from_json(text: str) -> Results:
    """Parse a result file.

    Raises:
        ValueError: the text is not JSON, is of another schema, or lacks a field.
    """
    data = json.loads(text)
    schema = data.pop("schema", None) if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"expected a result file of schema {SCHEMA}, got {schema!r}, try benchmarks.run again"
        )
    try:
        rows = [
            Row(
                **{
                    **row,
                    "dense": _timing(row["dense"]),
                    "sparse": _timing(row["sparse"]),
                    "speedup": Quartiles(**row["speedup"]),
                    "copies": tuple(row["copies"]),
                }
            )
            for row in data.pop("rows")
        ]
        failures = [Failure(**failure) for failure in data.pop("failures")]
        summary = [Check(**check) for check in data.pop("summary")]
        return Results(**data, rows=rows, failures=failures, summary=summary)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected a result file of schema {SCHEMA}, got one that does not fit it ({error}), "
            "try benchmarks.run again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name in its folder, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
