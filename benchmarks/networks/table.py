"""A result file of networks as Markdown: ``python -m benchmarks.networks.table FILE.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.networks.results import NetworkResults, NetworkRow
from benchmarks.record import counted
from benchmarks.table import figure, markdown


def networks_table(rows: Sequence[NetworkRow], sparsities: Sequence[float]) -> str:
    """A line an engine: milliseconds at each sparsity, the fastest dense of each type in bold.

    Behind it stand how many times faster ours of the same type is, and the worst error.
    """
    lines = []
    for engine in dict.fromkeys(row.engine for row in rows):
        own = {row.sparsity: row for row in rows if row.engine == engine}
        first = next(iter(own.values()))
        cells = [_cell(own.get(value)) for value in sparsities]
        worst = max(row.error for row in own.values())
        quality = min(row.sqnr_db for row in own.values())
        lines.append([engine, first.dtype, *cells, f"{worst:.1e}", f"{quality:.0f} dB"])
    heads = [f"{value:.0%}" for value in sparsities]
    return markdown(["engine", "type", *heads, "error", "SQNR"], lines)


def _cell(row: NetworkRow | None) -> str:
    if row is None:
        return "-"
    text = f"{1e3 * row.minimum:.3g}"
    if row.role != "ours" and row.ours_faster is not None:
        text += f" ({figure(row.ours_faster.median)}x)"
    return f"**{text}**" if row.is_best else text


def as_markdown(results: NetworkResults) -> str:
    """Everything as Markdown."""
    sparsities = sorted({row.sparsity for row in results.rows})
    threads = sorted({row.threads for row in results.rows})
    parts = [
        f"Milliseconds a call, the least, on {results.place}, {counted(threads)}; in brackets "
        "how many times faster ours of the same type is, the median of the ratio within a round. "
        "Bold: the fastest dense engine of its type. Each engine in a process of its own, in "
        "turns, with the same weights. Error: the largest difference from float64 over the largest "
        f"output. {', '.join(dict.fromkeys(results.engines.values()))}. {results.source}"
        f"{results.reservation}"
    ]
    for key in dict.fromkeys((row.network, row.batch, row.threads) for row in results.rows):
        own = [row for row in results.rows if (row.network, row.batch, row.threads) == key]
        parts.append(f"{key[0]}, batch {key[1]}, {counted([key[2]])}:")
        parts.append(networks_table(own, sparsities))
    if results.not_run:
        reasons = dict.fromkeys(f"- {item.engine}: {item.reason}" for item in results.not_run)
        parts.append("Not run:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)


def draw(results: NetworkResults, path: Path) -> None:
    """Draw time against sparsity, a panel a network, a line an engine."""
    from matplotlib.figure import Figure

    from sparseinfer.plotting import name_lines, write_figure

    keys = list(dict.fromkeys((row.network, row.batch, row.threads) for row in results.rows))
    figure_ = Figure(figsize=(4.2 * len(keys), 3.6), layout="constrained")
    for axis, key in zip(figure_.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        own = [row for row in results.rows if (row.network, row.batch, row.threads) == key]
        names = list(dict.fromkeys(row.engine for row in own))
        lines = []
        for name in names:
            points = sorted((row.sparsity, 1e3 * row.minimum) for row in own if row.engine == name)
            style = "o-" if name.startswith("sparseinfer") else "s--"
            lines += axis.plot(*zip(*points, strict=True), style, markersize=4)
        axis.set_title(f"{key[0]}, batch {key[1]}, {counted([key[2]])}", fontsize=9)
        axis.set_xlabel("sparsity")
        axis.set_ylabel("ms")
        axis.set_ylim(bottom=0)
        name_lines(axis, lines, names, fontsize=7)
    write_figure(figure_, path)


def main(
    results_file: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw")] = None,
) -> None:
    """Print a result file of networks as Markdown, and draw it."""
    results = NetworkResults.read(results_file)
    print(as_markdown(results))
    if plot is not None:
        draw(results, plot)


if __name__ == "__main__":
    typer.run(main)
