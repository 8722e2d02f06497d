"""The table of a run on a GPU, and its roofline."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.gpu.rows import REHEARSED, GpuResults, Timed
from benchmarks.plot import COLOURS, MARKERS
from sparseinfer.plotting import write_figure


def table(results: GpuResults) -> Table:
    """Every contender, by suite and case."""
    shown = Table(title=results.kind, caption=f"copy bandwidth {results.copy_gb_s:.3g} GB/s")
    for heading in ("case", "contender", "ms", "x dense", "GB/s", "of copy", "tokens/s"):
        shown.add_column(heading, justify="left" if heading in ("case", "contender") else "right")
    last = ""
    for row in results.rows:
        shown.add_row(
            "" if row.case == last else row.case, f"{row.contender} ({row.timed})",
            f"{row.ms:.4g}", f"{row.speedup:.2f}", f"{row.gb_s:.0f}", f"{row.copy_share:.0%}",
            "" if row.tokens_s is None else f"{row.tokens_s:.1f}",
        )  # fmt: skip
        last = row.case
    return shown


def intensity(row: Timed) -> float:
    """Multiplications and additions of the dense product for each byte that is moved."""
    return 2 * row.m * row.k * row.n / row.bytes


def roofline(results: GpuResults, path: Path) -> None:
    """Draw the dense product's operations a second over those a byte, under the copy bandwidth.

    A point is higher the faster its contender is, whatever zeros it leaves out, and further right
    the fewer bytes it moves for the same product.
    """
    canvas = Figure(figsize=(8.0, 5.0), dpi=140, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    names = list(dict.fromkeys(row.contender for row in results.rows))
    for index, name in enumerate(names):
        own = [row for row in results.rows if row.contender == name and row.suite == "layers"]
        axes.scatter(
            [intensity(row) for row in own],
            [2e-9 * row.m * row.k * row.n / row.ms for row in own],
            s=18, label=name, color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
        )  # fmt: skip
    drawn = [intensity(row) for row in results.rows if row.suite == "layers"]
    if drawn:
        ends = [min(drawn), max(drawn)]
        axes.plot(
            ends, [x * results.copy_gb_s / 1e3 for x in ends], color="black", lw=1,
            label="copy bandwidth",
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("operations of the dense product for each byte moved")
    axes.set_ylabel("dense product, Tflop/s")
    machine = results.machine.get("gpu", "no GPU")
    title = f"{machine}, {results.date[:10]}"
    axes.set_title(title if results.kind != REHEARSED else f"{title}: rehearsal, no measurement")
    axes.legend()
    write_figure(canvas, path)
