"""A report as tables, for wide and for narrow consoles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparseinfer.convert.grouping import Row

if TYPE_CHECKING:
    from rich.table import Table

    from sparseinfer.convert.model_report import Report, Whole

__all__ = ["WIDE", "cells", "narrow", "number", "reasons", "remarks", "wide"]

WIDE = 160
"""Columns from which the wide table is read better than the narrow one."""

NAME_ROOM = (24, 28)
"""Columns for a layer's name in the narrow table, without and with the bytes."""

LINE = 120
"""Columns beyond which prose is hard to read."""

MEDIUM = 100
"""Columns from which the narrow table has the interval and the bytes too."""

_SQNR = "SQNR"

_TEXTS = 5
"""Leading columns of the wide table that hold text, not numbers."""


def cells(report: Report) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Headings, rows and totals of the table with every column, as plain text.

    Example:
        >>> from sparseinfer.convert.model_report import Report
        >>> cells(Report(layers=[]))[0][:3]
        ['layer', 'weight', 'zeros']
    """
    narrow_types = _narrow_head(report)
    head = [
        "layer", "weight", "zeros", "pattern", "format", "bytes", "dense ms", "sparse ms",
        "speed-up", *narrow_types, "at",
    ]  # fmt: skip
    body = [
        [
            row.title, f"{row.kind} {_shape(row)}", f"{row.zeros:.1%}", row.pattern, row.runs_as,
            _bytes(row), number(row.dense_ms), number(row.sparse_ms), _gain(row, interval=True),
            *_narrow(row, narrow_types), row.inputs,
        ]
        for row in report.rows
    ]  # fmt: skip
    empty = [""] * len(narrow_types)
    totals = report.totals
    foot = [
        [
            f"{totals['layers']} layers", "", "", "", f"{totals['sparse_layers']} sparse",
            f"{size(totals['dense_bytes'])} -> {size(totals['bytes'])}",
            number(totals["dense_ms"]), number(totals["ms"]),
            "" if totals["ratio"] is None else f"{1 / totals['ratio']:.2f}x", *empty, "",
        ]
    ]  # fmt: skip
    whole = report.whole
    if whole is not None and whole.dense_ms is not None:
        timed = [number(whole.dense_ms), number(whole.sparse_ms), _gain(whole, interval=True)]
        foot.append(["whole model", "", "", "", "", "", *timed, *empty, whole.baseline])
    return head, body, foot


def wide(report: Report) -> Table:
    """Every column.

    Example:
        >>> from sparseinfer.convert.model_report import Report
        >>> wide(Report(layers=[])).row_count
        1
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    head, body, foot = cells(report)
    table = Table(title=report.title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, heading in enumerate(head):
        number_like = _TEXTS <= place < len(head) - 1
        table.add_column(heading, overflow="fold", justify="right" if number_like else "left")
    for line in body:
        table.add_row(*map(escape, line))
    table.add_section()
    for line in foot:
        table.add_row(*map(escape, line))
    return table


def narrow(report: Report, width: int) -> Table:
    """The columns that matter most; `width` is that of the console.

    Example:
        >>> from sparseinfer.convert.model_report import Report
        >>> len(narrow(Report(layers=[]), 80).columns)
        7
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    roomy = width >= MEDIUM
    narrow_types = _narrow_head(report)
    table = Table(
        title=report.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    room = NAME_ROOM[roomy]
    table.add_column("layer", overflow="fold", max_width=room)
    table.add_column("weight", overflow="fold")
    table.add_column("zeros", justify="right", no_wrap=True)
    table.add_column("runs as", overflow="fold")
    for heading in ("dense ms", "now ms", "gain", *(["bytes"] if roomy else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in narrow_types:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for own in report.rows:
        row = [
            escape(_folded(own.title, room)), _shape(own), f"{own.zeros:.1%}", own.runs_as,
            number(own.dense_ms), number(own.ms), _gain(own, roomy) if own.is_sparse else "",
        ]  # fmt: skip
        more = _narrow(own, narrow_types)
        table.add_row(*row, *([_bytes(own)] if roomy else []), *more)
    totals = report.totals
    table.add_section()
    row = [
        f"{totals['layers']} layers", "", "", f"{totals['sparse_layers']} sparse",
        number(totals["dense_ms"]), number(totals["ms"]),
        "" if totals["ratio"] is None else f"{1 / totals['ratio']:.2f}x",
    ]  # fmt: skip
    both = f"{size(totals['dense_bytes'])} -> {size(totals['bytes'])}"
    table.add_row(*row, *([both] if roomy else []))
    if report.whole is not None and report.whole.dense_ms is not None:
        whole = report.whole
        table.add_row(
            "whole model", "", "", whole.baseline, number(whole.dense_ms), number(whole.sparse_ms),
            _gain(whole, roomy), *([""] if roomy else []),
        )  # fmt: skip
    return table


def remarks(report: Report) -> list[tuple[str, list[str]]]:
    """Why layers stay dense, and which ones: those with the same reason together.

    Example:
        >>> from sparseinfer.convert.model_report import Report
        >>> remarks(Report(layers=[]))
        []
    """
    names: dict[str, list[str]] = {}
    for row in report.rows:
        if row.reason and (not row.is_sparse or row.nonfinite or row.wider):
            names.setdefault(row.reason, []).append(row.title)
    return list(names.items())


def reasons(report: Report, width: int) -> Table:
    """The `remarks` as a table; `width` is that of the console.

    Example:
        >>> from sparseinfer.convert.model_report import Report
        >>> reasons(Report(layers=[]), 80).row_count
        0
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1), width=min(width, LINE))
    table.add_column(overflow="fold")
    for remark, names in remarks(report):
        table.add_row(Text(", ".join(names)))
        table.add_row(Padding(Text(remark), (0, 0, 0, 4)))
    return table


def _folded(name: str, room: int) -> str:
    """A name in lines of at most `room` columns, begun anew behind a dot where there is one."""
    lines = [""]
    for part in re.findall(r"[^. ]+[. ]?|[. ]", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _shape(row: Row) -> str:
    return "x".join(map(str, row.shape))


def _gain(timed: Row | Whole, interval: bool) -> str:
    if timed.speedup is None:
        return ""
    spread = f" ({timed.low:.2f}-{timed.high:.2f})" if interval and timed.low is not None else ""
    return f"{timed.speedup:.2f}x{spread}"


def _narrow_head(report: Report) -> list[str]:
    """Columns where narrow types were tried: signal over error, and a rival's time over ours."""
    rivals = dict.fromkeys(name for row in report.rows for name in row.over)
    if not rivals and all(row.sqnr_db is None for row in report.rows):
        return []
    return [_SQNR, *(f"over {name}" for name in rivals)]


def _narrow(row: Row, head: Sequence[str]) -> list[str]:
    found = {f"over {name}": f"{ratio:.2f}x" for name, ratio in row.over.items()}
    if row.sqnr_db is not None:
        found[_SQNR] = f"{row.sqnr_db:.1f} dB"
    return [found.get(heading, "") for heading in head]


def _bytes(row: Row) -> str:
    dense = size(row.dense_bytes)
    return f"{dense} -> {size(row.bytes)}" if row.is_sparse else dense


def size(count: int) -> str:
    """Bytes in the unit that reads best, three digits.

    Example:
        >>> size(1234567), size(999)
        ('1.23 MB', '999 B')
    """
    for unit, factor in (("MB", 1_000_000), ("kB", 1000)):
        if count >= factor:
            digits = ".3g" if count < 1000 * factor else ".0f"
            return f"{count / factor:{digits}} {unit}"
    return f"{count} B"


def number(value: float | None) -> str:
    """Three digits of a time; nothing for None.

    Example:
        >>> number(0.01234), number(1234.5)
        ('0.0123', '1234')
    """
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
