"""Speed-up against sparsity: one line a group of cases, one panel a thread count.

Sparsity runs along the logarithm of 1 / density, the factor by which zeros cut the work: a kernel
that turns every skipped multiplication into time saved is a straight line of slope one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.results import Results, Row, geometric_mean
from sparseinfer.plotting import write_figure

# Okabe and Ito's palette: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#000000", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "X", "v", "P")

LABEL_INCHES = 0.19
"""Distance between the labels of two lines."""

Curve = list[tuple[float, float]]
"""Points (sparsity, speed-up), by sparsity."""

TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
"""Speed-ups that are marked."""


def work_cut(sparsity: float) -> float:
    """Return the factor by which the zeros cut the multiplications.

    Raises:
        ZeroDivisionError: everything is zero.
    """
    return 1 / (1 - sparsity)


def curve_of(rows: Sequence[Row], group: str, threads: int) -> Curve:
    """Return a group's geometric mean speed-up at each sparsity."""
    own = [row for row in rows if (row.group, row.threads) == (group, threads)]
    return [
        (value, geometric_mean(row.speedup.median for row in own if row.sparsity == value))
        for value in sorted({row.sparsity for row in own})
    ]


def break_even(curve: Curve) -> float | None:
    """Return the lowest sparsity from which on the speed-up stays at 1 or above.

    Between two measured points the plotted line is followed. None where the curve ends below 1;
    the first sparsity where it is never below.
    """
    if not curve or curve[-1][1] < 1:
        return None
    for (left, low), (right, high) in reversed(list(itertools.pairwise(curve))):
        if low < 1:
            share = -math.log(low) / (math.log(high) - math.log(low))
            return 1 - 1 / (work_cut(left) ** (1 - share) * work_cut(right) ** share)
    return curve[0][0]


def spread_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights moved apart, so that neighbours are at least ``gap`` from each other.

    The order stays; each run of labels that would touch is centred on where its labels belong.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    clusters: list[tuple[float, list[int]]] = []  # centre, members from low to high
    for index in order:
        centre, members = heights[index], [index]
        while clusters:
            below, others = clusters[-1]
            if centre - below >= gap * (len(members) + len(others)) / 2:
                break
            clusters.pop()
            members = others + members
            centre = sum(heights[i] for i in members) / len(members)
        clusters.append((centre, members))
    moved = [0.0] * len(heights)
    for centre, members in clusters:
        for place, index in enumerate(members):
            moved[index] = centre + gap * (place - (len(members) - 1) / 2)
    return moved


def _label(group: str, curve: Curve) -> str:
    at = break_even(curve)
    if at is None:
        note = "never pays"
    else:
        note = "always pays" if at == curve[0][0] else f"pays from {at:.0%}"
    return f"{group}: {curve[-1][1]:.1f}x, {note}"


def _panel(
    axes: Axes, curves: dict[str, Curve], styles: dict[str, tuple[str, str]], label_gap: float
) -> None:
    last = work_cut(max(curve[-1][0] for curve in curves.values()))
    axes.plot([1, last], [1, 1], color="0.25", linewidth=1.2, zorder=1)
    axes.plot([1, last], [1, last], color="0.6", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for group, curve in curves.items():
        colour, marker = styles[group]
        xs = [work_cut(sparsity) for sparsity, _ in curve]
        ys = [speedup for _, speedup in curve]
        axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=1.8, zorder=3)
        at = break_even(curve)
        if at is not None and at > curve[0][0]:
            axes.plot([work_cut(at)], [1.0], marker="o", color="white", markeredgecolor=colour,
                      markersize=8, markeredgewidth=1.8, zorder=4)  # fmt: skip
    labels = [
        (_label(group, curve), curve[-1][1], styles[group][0]) for group, curve in curves.items()
    ]
    labels.append(("as fast as dense", 1.0, "0.25"))
    heights = spread_labels([math.log(end) for _, end, _ in labels], label_gap)
    for (text, end, colour), height in zip(labels, heights, strict=True):
        axes.annotate(
            text,
            xy=(last, end),
            xytext=(last * 1.12, math.exp(height)),
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
            },
            annotation_clip=False,
        )


def set_scales(
    axes: Axes, sparsities: Sequence[float], lowest: float, highest: float, left: float = 0.93
) -> None:
    """Lay out axes of speed-up over sparsity, both logarithmic; `left` is where the latter begins,
    in times of the work that is cut."""
    cuts = [work_cut(value) for value in sparsities]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, cuts[-1] * 1.08)
    axes.set_ylim(lowest, highest)
    axes.set_xticks(cuts, [f"{value:.0%}" for value in sparsities])
    ticks = [tick for tick in TICKS if lowest < tick < highest]
    axes.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw(results: Results, groups: Sequence[str], suites: Sequence[str], path: Path) -> None:
    """Draw the kernels' speed-up over dense against sparsity and write it as a PNG file.

    Raises:
        ValueError: the results hold no row of the suites with random zeros.
    """
    rows = [row for row in results.rows if row.suite in suites and row.pattern == "unstructured"]
    if not rows:
        raise ValueError(f"expected rows of {' or '.join(suites)}, got none, try --suite all")
    threads = sorted({row.threads for row in rows})
    sparsities = sorted({row.sparsity for row in rows})
    styles = dict(zip(groups, zip(COLOURS, MARKERS, strict=True), strict=True))
    panels = [
        {group: curve for group in groups if (curve := curve_of(rows, group, count))}
        for count in threads
    ]
    speedups = [point[1] for curves in panels for curve in curves.values() for point in curve]
    lowest, highest = min([*speedups, 0.8]) / 1.2, max([*speedups, 2.0]) * 1.3

    canvas = Figure(figsize=(9.0, 4.1 * len(threads) + 0.6), dpi=140)
    FigureCanvasAgg(canvas)
    # The room to the right of the axes holds the labels of the lines.
    canvas.subplots_adjust(left=0.08, right=0.64, top=1 - 0.75 / canvas.get_figheight(),
                           bottom=0.55 / canvas.get_figheight(), hspace=0.2)  # fmt: skip
    all_axes = canvas.subplots(len(threads), 1, squeeze=False)[:, 0]
    for axes, count, curves in zip(all_axes, threads, panels, strict=True):
        set_scales(axes, sparsities, lowest, highest)
        axes.set_title(f"{count} thread{'s' if count > 1 else ''}", loc="left", fontsize=11)
        axes.set_ylabel("times faster than dense")
        panel_inches = axes.get_position().height * canvas.get_figheight()
        _panel(axes, curves, styles, LABEL_INCHES * math.log(highest / lowest) / panel_inches)
    all_axes[-1].set_xlabel("sparsity: share of weights that are zero, at random places")
    machine, versions = results.machine, results.versions
    title = (
        f"float32 against PyTorch {versions['torch']} ({versions['torch_cpu_capability']}) on "
        f"{machine['cpu']}\ncircles: break-even; dashed: 1 / (1 - sparsity), all of the work the "
        "zeros cut"
    )
    canvas.suptitle(title, fontsize=10, x=0.02, ha="left", y=0.99, va="top")
    write_figure(canvas, path)
