"""From a result file of the peers to Markdown tables and a plot.

``python -m benchmarks.peers.table RESULTS.json --plot NAME.png``
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers.axes import WORDS
from benchmarks.peers.plot import draw
from benchmarks.peers.results import NotRun, PeerResults, PeerRow
from benchmarks.record import counted
from benchmarks.results import geometric_mean
from benchmarks.table import figure, folded, markdown, unique


def best_of(rows: Iterable[PeerRow]) -> str:
    """Return the name of the best dense peer: that of the type that was asked for."""
    kinds = unique(row.dtype for row in rows)
    return f"best dense {WORDS[kinds[0]] if kinds else WORDS['float32']}"


def against(rows: Sequence[PeerRow], peer: str) -> list[PeerRow]:
    """Return the rows that say how much faster ours is than ``peer``, or than the best dense."""
    best = best_of(rows)
    return [
        row
        for row in rows
        if row.ours_faster is not None and (row.is_best if peer == best else row.peer == peer)
    ]


def parts_of(results: PeerResults) -> list[tuple[str, PeerResults]]:
    """Return the results of each type of x and y and each structure of zeros, with a title.

    The title is empty where there is one part alone.
    """
    keys = list(dict.fromkeys((row.io, row.structure) for row in results.rows))
    if len(keys) < 2:
        return [("", results)]
    parts = []
    for io, structure in keys:
        rows = [row for row in results.rows if (row.io, row.structure) == (io, structure)]
        zeros = structure if structure == "unstructured" else f"{structure} blocks"
        title = f"{io} x and y, {zeros}"
        parts.append((title, dataclasses.replace(results, rows=rows)))
    return parts


def _titled(title: str, table: str) -> str:
    return f"{title[0].upper()}{title[1:]}:\n\n{table}" if title else table


def peers_tables(results: PeerResults) -> str:
    """Return `peers_table` of every part."""
    tables = (_titled(title, peers_table(part)) for title, part in parts_of(results))
    return "\n\n".join(tables)


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
    for peer in (best_of(results.rows), *others):
        own = against(results.rows, peer)
        if own:
            means = (mean_cell(_at(own, value), threads) for value in sparsities)
            losses = (loss_cell(_at(own, value), threads) for value in sparsities)
            lines += [[peer, *means], [f"{peer}: layers where ours is slower", *losses]]
    return markdown(["ours is faster than", *_headers(sparsities)], lines)


def groups_table(results: PeerResults) -> str:
    """Return how much faster ours is than the best dense peer, by group of layers."""
    sparsities, threads = axes_of(results)
    best = best_of(results.rows)
    own = against(results.rows, best)
    lines = []
    for group in unique(row.group for row in own):
        part = [row for row in own if row.group == group]
        lines.append([group, *(mean_cell(_at(part, value), threads) for value in sparsities)])
    return markdown([f"ours over {best}", *_headers(sparsities)], lines)


def layers_table(results: PeerResults, threads: int) -> str:
    """Return every figure at one thread count: a line a layer and peer, the best dense in bold."""
    sparsities, _ = axes_of(results)
    rows = [row for row in results.rows if row.threads == threads]
    lines = []
    for target in unique(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        for peer in unique(row.peer for row in own):
            at = {row.sparsity: row for row in own if row.peer == peer}
            figures = (_figures(at.get(value)) for value in sparsities)
            lines.append([target, peer, *figures, *_worst(at.values())])
    return markdown(["layer", "peer", *_headers(sparsities), *_worst_header(rows)], lines)


def _worst(rows: Iterable[PeerRow]) -> list[str]:
    """Return the worst error of a peer in a column of its own, where there is one."""
    errors = [row.error for row in rows if row.error is not None]
    return [f"{max(errors):.2g}"] if errors else []


def _worst_header(rows: Sequence[PeerRow]) -> list[str]:
    return ["worst error"] if any(row.error is not None for row in rows) else []


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
        f"Times that {_ours(results)} is faster, batch 1, {counted(threads)}, "
        f"on {results.place}. Below 1 it is slower. Geometric means over "
        "the layers of the ratio within a round, each engine in a process of its own, in turns; "
        f"every result was checked against {_reference(results)} first. {versions}. "
        f"{results.source}"
    )
    restless = unique(row.peer for row in results.rows if not row.quiet)
    if restless:
        text += f" Threads of {', '.join(restless)} were still awake in other peers' turns."
    return text + results.reservation


def _ours(results: PeerResults) -> str:
    inside = any(row.io == "uint8" for row in results.rows)
    return "sparseinfer's native call (uint8) or module" if inside else "sparseinfer's module"


def _reference(results: PeerResults) -> str:
    exact = any(row.dtype == "int8" for row in results.rows)
    return "the exact integer result" if exact else "float64"


def as_markdown(results: PeerResults) -> str:
    """Return everything as Markdown."""
    sections = [introduction(results)]
    caption = (
        f"Median (minimum) in milliseconds, times ours is faster, times the "
        f"{best_of(results.rows)} peer (bold) is faster"
    )
    if any(row.error is not None for row in results.rows):
        caption += "; the worst error against the exact result, in steps of y's scale"
    for title, part in parts_of(results):
        sections.append(_titled(title, f"{peers_table(part)}\n\n{groups_table(part)}"))
        for count in axes_of(part)[1]:
            layers = f"Every layer, {count} thread{'s' if count > 1 else ''}"
            layers += f", {title}" if title else ""
            sections.append(folded(layers, f"{caption}.\n\n{layers_table(part, count)}"))
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
