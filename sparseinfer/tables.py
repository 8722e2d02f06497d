"""A report as tables, for wide and for narrow consoles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sparseinfer.report import LayerReport, Report, Whole

__all__ = ["WIDE", "narrow", "number", "reasons", "wide"]

WIDE = 160
"""Columns from which the wide table is read better than the narrow one."""

NAME_ROOM = (24, 28)
"""Columns for a layer's name in the narrow table, without and with the bytes."""

LINE = 120
"""Columns beyond which prose is hard to read."""

MEDIUM = 100
"""Columns from which the narrow table has the interval and the bytes too."""


def wide(report: Report) -> Table:
    """Every column.

    Example:
        >>> from sparseinfer.report import Report
        >>> wide(Report(layers=[])).row_count
        1
    """
    table = Table(title=report.title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer", overflow="fold", min_width=16)
    for heading in ("weight", "zeros", "pattern", "format"):
        table.add_column(heading)
    for heading in ("bytes", "dense ms", "sparse ms", "speed-up"):
        table.add_column(heading, justify="right")
    table.add_column("at", overflow="fold")
    for layer in report.layers:
        table.add_row(
            escape(layer.name) or "(root)", f"{layer.kind} {_shape(layer)}",
            f"{layer.sparsity:.1%}", layer.pattern, layer.format, _bytes(layer),
            number(layer.dense_ms), number(layer.sparse_ms), _gain(layer, interval=True),
            layer.inputs,
        )  # fmt: skip
    totals = report.totals
    table.add_section()
    table.add_row(
        f"{totals['layers']} layers", "", "", "", f"{totals['sparse_layers']} sparse",
        f"{size(totals['dense_bytes'])} -> {size(totals['bytes'])}",
        number(totals["dense_ms"]), number(totals["ms"]),
        "" if totals["ratio"] is None else f"{1 / totals['ratio']:.2f}x", "",
    )  # fmt: skip
    if report.whole is not None and report.whole.dense_ms is not None:
        whole = report.whole
        table.add_row(
            "whole model", "", "", "", "", "", number(whole.dense_ms), number(whole.sparse_ms),
            _gain(whole, interval=True), whole.baseline,
        )  # fmt: skip
    return table


def narrow(report: Report, width: int) -> Table:
    """The columns that matter most; `width` is that of the console.

    Example:
        >>> from sparseinfer.report import Report
        >>> len(narrow(Report(layers=[]), 80).columns)
        7
    """
    roomy = width >= MEDIUM
    table = Table(
        title=report.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    room = NAME_ROOM[roomy]
    table.add_column("layer", overflow="fold", max_width=room)
    table.add_column("weight", no_wrap=True)
    table.add_column("zeros", justify="right", no_wrap=True)
    table.add_column("runs as", no_wrap=True)
    for heading in ("dense ms", "now ms", "gain", *(["bytes"] if roomy else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    names = _names([layer.name for layer in report.layers], room)
    for name, layer in zip(names, report.layers, strict=True):
        row = [
            escape(name), _shape(layer), f"{layer.sparsity:.1%}", layer.format,
            number(layer.dense_ms), number(layer.ms),
            _gain(layer, roomy) if layer.is_sparse else "",
        ]  # fmt: skip
        table.add_row(*row, *([_bytes(layer)] if roomy else []))
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


def reasons(report: Report, width: int) -> Table:
    """Why layers stay dense, those with the same reason together; `width` is that of the console.

    Example:
        >>> from sparseinfer.report import Report
        >>> reasons(Report(layers=[]), 80).row_count
        0
    """
    table = Table(box=None, show_header=False, padding=(0, 1), width=min(width, LINE))
    table.add_column(overflow="fold")
    names: dict[str, list[str]] = {}
    for layer in report.layers:
        if _remark(layer):
            names.setdefault(_remark(layer), []).append(layer.name or "(root)")
    for remark, found in names.items():
        table.add_row(Text(", ".join(found)))
        table.add_row(Padding(Text(remark), (0, 0, 0, 4)))
    if names:
        table.add_row()
    return table


def _names(names: list[str], room: int) -> list[str]:
    """Names to be read from top to bottom: a long one begins where it differs from the last."""
    shown, above = [], [""]
    for name in names:
        parts = name.split(".")
        shared = 0
        while shared < min(len(parts), len(above)) - 1 and parts[shared] == above[shared]:
            shared += 1
        fits = shared == 0 or len(name) <= room
        shown.append((name or "(root)") if fits else "…" + ".".join(parts[shared:]))
        above = parts
    return shown


def _remark(layer: LayerReport) -> str:
    return "" if layer.is_sparse and not layer.nonfinite else layer.reason


def _shape(layer: LayerReport) -> str:
    return "x".join(map(str, layer.shape))


def _gain(timed: LayerReport | Whole, interval: bool) -> str:
    if timed.speedup is None:
        return ""
    spread = f" ({timed.low:.2f}-{timed.high:.2f})" if interval and timed.low is not None else ""
    return f"{timed.speedup:.2f}x{spread}"


def _bytes(layer: LayerReport) -> str:
    dense = size(layer.dense_bytes)
    return f"{dense} -> {size(layer.bytes)}" if layer.is_sparse else dense


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
