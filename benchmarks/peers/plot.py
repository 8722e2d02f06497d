"""Speed-up over the best dense float32 peer against sparsity: a line an engine that uses zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.peers.results import PeerResults, PeerRow
from benchmarks.plot import COLOURS, MARKERS, Curve, set_scales, spread_labels, work_cut
from benchmarks.results import geometric_mean
from sparseinfer.plotting import write_figure

ROLES = ("ours", "sparse", "narrow")
"""Who has a line: the dense float32 peers are the line at 1."""

LABEL_INCHES = 0.18
"""Distance between the labels of two lines."""


def curve_of(rows: Sequence[PeerRow], peer: str) -> Curve:
    """Return a peer's geometric mean speed-up over the best dense peer at each sparsity."""
    own = [row for row in rows if row.peer == peer and row.best_faster is not None]
    return [
        (
            value,
            geometric_mean(
                1 / row.best_faster.median
                for row in own
                if row.best_faster is not None and row.sparsity == value
            ),
        )
        for value in sorted({row.sparsity for row in own})
    ]


def _panel(
    axes: Axes, curves: dict[str, Curve], styles: dict[str, tuple[str, str]], inches: float
) -> None:
    sparsities = sorted({point[0] for curve in curves.values() for point in curve})
    heights = [point[1] for curve in curves.values() for point in curve]
    lowest, highest = min([*heights, 0.8]) / 1.2, max([*heights, 2.0]) * 1.3
    cuts = [work_cut(value) for value in sparsities]
    set_scales(axes, sparsities, lowest, highest, left=cuts[0] / 1.06)
    axes.axhline(1, color="0.25", linewidth=1.2, zorder=1)
    labels = [("best dense fp32", 1.0, "0.25")]
    for peer, curve in curves.items():
        colour, marker = styles[peer]
        axes.plot(
            [work_cut(value) for value, _ in curve], [speedup for _, speedup in curve],
            color=colour, marker=marker, markersize=4.5, linewidth=1.7, zorder=3,
        )  # fmt: skip
        labels.append((f"{peer} {curve[-1][1]:.2g}x", curve[-1][1], colour))
    gap = LABEL_INCHES * math.log(highest / lowest) / inches
    moved = spread_labels([math.log(end) for _, end, _ in labels], gap)
    for (text, end, colour), height in zip(labels, moved, strict=True):
        axes.annotate(
            text, xy=(cuts[-1], end), xytext=(cuts[-1] * 1.14, math.exp(height)), color=colour,
            fontsize=8, va="center", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0.0, 0.5),
                "shrinkA": 1,
            },
        )  # fmt: skip


def draw(results: PeerResults, path: Path) -> None:
    """Draw the speed-ups and write them as a PNG file: a row a thread count, a column an operation.

    Raises:
        ValueError: no layer has a dense float32 peer to compare with.
    """
    rows = [row for row in results.rows if row.role in ROLES and row.best_faster is not None]
    if not rows:
        raise ValueError("expected rows beside a dense peer, got none, try --peers all")
    threads = sorted({row.threads for row in rows})
    ops = [op for op in ("linear", "conv") if any(row.op == op for row in rows)]
    names = list(dict.fromkeys(row.peer for row in rows))
    styles = dict(zip(names, zip(COLOURS, MARKERS, strict=True), strict=False))
    canvas = Figure(figsize=(6.0 * len(ops), 3.6 * len(threads) + 0.7), dpi=140)
    FigureCanvasAgg(canvas)
    # The room to the right of each panel holds the labels of its lines.
    inch = 1 / canvas.get_figheight()
    canvas.subplots_adjust(
        left=0.12 / len(ops), right=0.8, top=1 - 0.8 * inch, bottom=0.5 * inch, wspace=0.75,
        hspace=0.3,
    )  # fmt: skip
    panels = canvas.subplots(len(threads), len(ops), squeeze=False)
    for line, count in zip(panels, threads, strict=True):
        for axes, op in zip(line, ops, strict=True):
            own = [row for row in rows if (row.threads, row.op) == (count, op)]
            curves = {peer: curve for peer in names if (curve := curve_of(own, peer))}
            layers = len({row.target for row in own})
            axes.set_title(
                f"{op}, {layers} layers, {count} thread{'s' if count > 1 else ''}",
                loc="left", fontsize=10,
            )  # fmt: skip
            _panel(axes, curves, styles, axes.get_position().height / inch)
    for axes in panels[-1]:
        axes.set_xlabel("sparsity: share of weights that are zero, at random places", fontsize=9)
    canvas.suptitle(
        f"times faster than the best dense float32 engine, batch 1, on {results.machine['cpu']}\n"
        "geometric means over the layers that an engine ran",
        fontsize=10, x=0.02, ha="left", y=0.99, va="top",
    )  # fmt: skip
    write_figure(canvas, path)
