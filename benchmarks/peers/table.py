"""From a result file of the peers to Markdown tables and a plot.

``python -m benchmarks.peers.table RESULTS.json --plot NAME.png``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers.plot import draw
from benchmarks.peers.results import NotRun, PeerResults, PeerRow
from benchmarks.record import counted
from benchmarks.results import geometric_mean
from benchmarks.table import figure, folded, markdown, unique

BEST = "best dense fp32"


def against(rows: Iterable[PeerRow], peer: str) -> list[PeerRow]:
    """Return the rows that say how much faster ours is than ``peer``, or than the best dense."""
    return [
        row
        for row in rows
        if row.ours_faster is not None and (row.is_best if peer == BEST else row.peer == peer)
    ]


def mean_cell(rows: Sequence[PeerRow], threads: Sequence[int]) -> str:
    """Return the geometric mean of ours over the rows' peers, for each thread count."""
    parts = []
    for count in threads:
        ratios = [
            row.ours_faster.median for row in rows if row.ours_faster and row.threads == count
        ]
        parts.append(figure(geometric_mean(ratios)) if ratios else "-")
    return " / ".join(parts)


def loss_cell(rows: Sequence[PeerRow], threads: Sequence[int]) -> str:
    """Return on how many of the layers ours is the slower one, for each thread count."""
    parts = []
    for count in threads:
        ratios = [
            row.ours_faster.median for row in rows if row.ours_faster and row.threads == count
        ]
        parts.append(f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}")
    return " / ".join(parts)


def _at(rows: Sequence[PeerRow], sparsity: float) -> list[PeerRow]:
    return [row for row in rows if row.sparsity == sparsity]


def peers_table(results: PeerResults) -> str:
    """Return how much faster ours is than each peer, and on how many layers it is slower."""
    sparsities, threads = axes_of(results)
    others = unique(row.peer for row in results.rows if row.role != "ours")
    lines = []
    for peer in (BEST, *others):
        own = against(results.rows, peer)
        if own:
            means = (mean_cell(_at(own, value), threads) for value in sparsities)
            losses = (loss_cell(_at(own, value), threads) for value in sparsities)
            lines += [[peer, *means], [f"{peer}: layers where ours is slower", *losses]]
    return markdown(["ours is faster than", *_headers(sparsities)], lines)


def groups_table(results: PeerResults) -> str:
    """Return how much faster ours is than the best dense float32 peer, by group of layers."""
    sparsities, threads = axes_of(results)
    own = against(results.rows, BEST)
    lines = []
    for group in unique(row.group for row in own):
        part = [row for row in own if row.group == group]
        lines.append([group, *(mean_cell(_at(part, value), threads) for value in sparsities)])
    return markdown([f"ours over {BEST}", *_headers(sparsities)], lines)


def layers_table(results: PeerResults, threads: int) -> str:
    """Return every figure at one thread count: a line a layer and peer, the best dense in bold."""
    sparsities, _ = axes_of(results)
    rows = [row for row in results.rows if row.threads == threads]
    lines = []
    for target in unique(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        for peer in unique(row.peer for row in own):
            at = {row.sparsity: row for row in own if row.peer == peer}
            lines.append([target, peer, *(_figures(at.get(value)) for value in sparsities)])
    return markdown(["layer", "peer", *_headers(sparsities)], lines)


def _figures(row: PeerRow | None) -> str:
    if row is None:
        return "-"
    time = f"{row.seconds.median * 1e3:.3g} ({row.minimum * 1e3:.3g})"
    ratios = (
        figure(ratio.median) if ratio else "-" for ratio in (row.ours_faster, row.best_faster)
    )
    text = " ".join((time, *ratios))
    return f"**{text}**" if row.is_best else text


def not_run_list(items: Sequence[NotRun]) -> str:
    """Return who has no figures, why, and for how many layers."""
    lines = []
    for peer, reason in dict.fromkeys((item.peer, item.reason) for item in items):
        same = [item for item in items if (item.peer, item.reason) == (peer, reason)]
        where = same[0].target if len({item.target for item in same}) == 1 else ""
        count = f"{len(same)} measurement{'s' if len(same) > 1 else ''}"
        lines.append(f"- {peer} ({where + ', ' if where else ''}{count}): {reason}")
    return "\n".join(lines)


def axes_of(results: PeerResults) -> tuple[list[float], list[int]]:
    """Return the sparsities and the thread counts that were measured."""
    return (
        sorted({row.sparsity for row in results.rows}),
        sorted({row.threads for row in results.rows}),
    )


def _headers(sparsities: Sequence[float]) -> list[str]:
    return [f"{value:.0%}" for value in sparsities]


def introduction(results: PeerResults) -> str:
    """Return the sentences that say what the figures are and where they come from."""
    _, threads = axes_of(results)
    versions = ", ".join(unique(results.peers.values()))
    text = (
        f"Times that sparseinfer's module is faster, batch 1, {counted(threads)}, "
        f"on {results.place}. Below 1 it is slower. Geometric means over "
        "the layers of the ratio within a round, each engine in a process of its own, in turns; "
        f"every result was checked against float64 first. {versions}. "
        f"{results.source}"
    )
    restless = unique(row.peer for row in results.rows if not row.quiet)
    if restless:
        text += f" Threads of {', '.join(restless)} were still awake in other peers' turns."
    return text + results.reservation


def as_markdown(results: PeerResults) -> str:
    """Return everything as Markdown."""
    _, threads = axes_of(results)
    sections = [introduction(results), peers_table(results), groups_table(results)]
    caption = (
        "Median (minimum) in milliseconds, times ours is faster, times the best dense float32 peer "
        "(bold) is faster."
    )
    for count in threads:
        title = f"Every layer, {count} thread{'s' if count > 1 else ''}"
        sections.append(folded(title, f"{caption}\n\n{layers_table(results, count)}"))
    if results.not_run:
        sections.append(f"Not run:\n\n{not_run_list(results.not_run)}")
    return "\n\n".join(sections)


def main(
    results_file: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw")] = None,
) -> None:
    """Print a result file of the peers as Markdown, and draw speed-up against sparsity."""
    results = PeerResults.read(results_file)
    print(as_markdown(results))
    if plot is not None:
        draw(results, plot)


if __name__ == "__main__":
    typer.run(main)
