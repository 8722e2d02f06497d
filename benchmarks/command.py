"""What the commands of the benchmarks share: their options, their bar, and how they are ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SAVE_EVERY = 10.0
"""Seconds between two writes of the partial result."""

BUSY_LOAD = 0.3
"""Load per core above which figures are not to be trusted."""


def parse_threads(text: str) -> list[int]:
    """Return the thread counts in a list such as ``1,2``.

    Raises:
        typer.BadParameter: an item is not a number above zero.
    """
    items = text.split(",")
    if not all(item.strip().isdigit() and int(item) > 0 for item in items):
        raise typer.BadParameter(f"expected thread counts such as 1,2, got {text!r}")
    return [int(item) for item in items]


def parse_names(text: str, known: Collection[str]) -> list[str]:
    """Return the names in a list such as ``kernels,cold``; ``all`` is every one of ``known``.

    Raises:
        typer.BadParameter: a name is not known.
    """
    names = list(known) if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"expected all or some of {', '.join(known)}, got {name!r}")
    return names


def parse_sparsities(text: str) -> list[float]:
    """Return the sparsities in a list such as ``0.8,0.9``.

    Raises:
        typer.BadParameter: an item is not a number from 0 to below 1.
    """
    try:
        values = [float(item) for item in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value < 1 for value in values):
        raise typer.BadParameter(f"expected sparsities such as 0.8,0.9, got {text!r}")
    return values


def warn_if_busy(console: Console, cores: int, meaning: str = "ratios will spread") -> None:
    """Say so where other programs load the machine."""
    load = os.getloadavg()[0] / cores
    if load > BUSY_LOAD:
        console.print(f"[yellow]the machine is busy (load {load:.2f} a core): {meaning}[/]")


def end_as_by_ctrl_c() -> None:
    """Take a request to end like Ctrl-C: what was measured is written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def progress_bar(console: Console, *, auto_refresh: bool = True) -> Progress:
    """A bar of jobs, with the time that has passed and the time that is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=auto_refresh,
    )
