"""Is time proportional to work? Seconds against nnz x N, both logarithmic, and a straight line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.plot import COLOURS, MARKERS
from benchmarks.results import Results, Row
from sparseinfer.plotting import write_figure

SUITE = "linearity"


@dataclass(frozen=True)
class Line:
    """The straight line nearest to log(seconds) over log(work), at one N and number of threads.

    ``slope`` is 1 where time is proportional to work. ``deviation`` is how far the furthest point
    is off the line, as a share of the line's time.
    """

    n: int
    threads: int
    work: tuple[int, ...]
    """nnz x N of the points, ascending."""
    seconds: tuple[float, ...]
    slope: float
    intercept: float

    def at(self, work: float) -> float:
        """Return the line's seconds."""
        return math.exp(self.intercept + self.slope * math.log(work))

    @property
    def deviation(self) -> float:
        """Largest distance of a point from the line, as a share of the line's time."""
        pairs = zip(self.work, self.seconds, strict=True)
        return max(abs(seconds / self.at(work) - 1) for work, seconds in pairs)


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Return the lines of the suite's rows, by threads and N; none where a line has two points."""
    own = [row for row in rows if row.suite == SUITE]
    lines = []
    for threads, n in sorted({(row.threads, row.n) for row in own}):
        points = sorted(
            (row.nnz * n, row.sparse.seconds.median)
            for row in own
            if (row.threads, row.n) == (threads, n)
        )
        if len(points) > 2:
            work, seconds = zip(*points, strict=True)
            slope, intercept = np.polyfit(np.log(work), np.log(seconds), 1)
            lines.append(Line(n, threads, work, seconds, float(slope), float(intercept)))
    return lines


def draw(results: Results, path: Path) -> None:
    """Draw time against work for every N and write it as a PNG file, a panel a thread count.

    Raises:
        ValueError: the results hold no three rows of the suite at one N.
    """
    lines = lines_of(results.rows)
    if not lines:
        raise ValueError(f"expected rows of {SUITE}, got too few, try --suite {SUITE}")
    counts = sorted({line.threads for line in lines})
    tokens = sorted({line.n for line in lines})
    styles = dict(zip(tokens, zip(COLOURS, MARKERS, strict=True), strict=False))
    canvas = Figure(figsize=(4.6 * len(counts) + 0.6, 4.4), dpi=140, layout="constrained")
    FigureCanvasAgg(canvas)
    panels = canvas.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, threads in zip(panels, counts, strict=True):
        for line in (line for line in lines if line.threads == threads):
            colour, marker = styles[line.n]
            label = f"N={line.n}: slope {line.slope:.2f}, within {line.deviation:.0%}"
            axes.plot(line.work, line.seconds, marker, color=colour, markersize=5, label=label)
            ends = (line.work[0], line.work[-1])
            axes.plot(ends, [line.at(end) for end in ends], color=colour, linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("non-zero weights times N")
        axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}", loc="left", fontsize=11)
        axes.legend(fontsize=8, frameon=False)
        axes.grid(color="0.92", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds a call")
    canvas.suptitle(
        f"Sparse linear layers on {results.machine['cpu']}: time against work, "
        "and the straight line nearest to it",
        fontsize=10,
    )
    write_figure(canvas, path)
