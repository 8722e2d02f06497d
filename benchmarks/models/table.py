"""From a result file of the models to a table.

``python -m benchmarks.models.table benchmarks/results/models/NAME.json --readme README.md``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from benchmarks.models.rows import SLOWER, ModelResults, ModelRow
from benchmarks.record import counted
from benchmarks.table import figure, markdown, replace_section, unique
from sparseinfer.files import write_text

SECTION = "models"
"""Name of the section between marker comments that `--readme` replaces."""

HEADER = (
    "model", "sparsity", "dense ms", "converted ms", "layers sparse / left", "gain",
    "gain over channels_last", "MB",
)  # fmt: skip
NARROW = 6
"""Columns that a terminal shows."""


def short(value: float) -> str:
    """Return a figure with three significant digits, or all of its whole ones."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def layers_of(row: ModelRow) -> str:
    """Return how many layers run sparse and how many were left."""
    return f"{row.converted_layers} / {len(row.left_layers)}"


def gain(row: ModelRow) -> str:
    """Return the whole model's ratio, marked where it is below 0.97."""
    return figure(row.speedup.median) + (" (slower)" if row.is_slower else "")


def over_channels_last(row: ModelRow) -> str:
    """Return the ratio to the dense model in channels_last; empty where it was not measured."""
    ratio = row.speedup_over_channels_last
    return "" if ratio is None else figure(ratio.median)


def title(row: ModelRow) -> str:
    """Return the model's name, what a call computes, and whether its weights are random."""
    return f"{row.model}: {row.does}" + ("" if row.trained else " (random weights)")


def lines(rows: Sequence[ModelRow]) -> list[list[str]]:
    """Return a line a model and sparsity; a cell holds a figure for each thread count.

    A figure is `-` where that thread count was not measured.
    """
    threads = sorted({row.threads for row in rows})
    table = []
    for key in dict.fromkeys((row.model, row.sparsity) for row in rows):
        own = {row.threads: row for row in rows if (row.model, row.sparsity) == key}
        first = next(iter(own.values()))

        def cell(text: Callable[[ModelRow], str], own: dict[int, ModelRow] = own) -> str:
            texts = [text(own[count]) if count in own else "-" for count in threads]
            return " / ".join(texts) if any(texts) else ""

        table.append(
            [
                title(first),
                f"{first.sparsity:.0%}",
                cell(lambda row: short(row.dense.seconds.median * 1e3)),
                cell(lambda row: short(row.converted.seconds.median * 1e3)),
                "; ".join(unique(layers_of(row) for row in own.values())),
                cell(gain),
                cell(over_channels_last),
                f"{short(first.dense_bytes / 1e6)} to {short(first.converted_bytes / 1e6)}",
            ]
        )
    return table


def introduction(results: ModelResults) -> str:
    """Return the sentences that say what the figures are and where they come from."""
    versions = results.versions
    threads = sorted({row.threads for row in results.rows})
    text = (
        f"Whole models, pruned in one shot by magnitude (so they lose accuracy; times do not "
        f"depend on it), float32, dense PyTorch {versions['torch']} "
        f"({versions['torch_cpu_capability']}), {counted(threads)}, "
        f"on {results.place}. Gain: dense over converted time, medians of interleaved rounds; "
        f"below {SLOWER} it is marked. Every output was compared with float64 first; "
        f"generated tokens are equal to the dense model's. {results.source}"
    )
    return text + results.reservation


def markdown_section(results: ModelResults) -> str:
    """Return the README's section: what was measured, the table, what was skipped or failed."""
    parts = [introduction(results), markdown(HEADER, lines(results.rows))]
    parts += [f"- {item.model} was skipped: {item.reason}" for item in results.skipped]
    parts += [
        f"- {item.model} at {item.sparsity:.0%} on {item.threads} threads failed: {item.error}"
        for item in results.failures
    ]
    return "\n\n".join(parts)


def console_table(results: ModelResults) -> Table:
    """Return the table for a terminal; models that got slower are red."""
    table = Table(Column(HEADER[0], overflow="fold", ratio=1), *HEADER[1:NARROW])
    for line in lines(results.rows):
        table.add_row(*line[:NARROW], style="red" if "slower" in line[NARROW - 1] else None)
    for item in results.skipped:
        table.add_row(f"{item.model}: skipped", style="yellow")
    for failure in results.failures:
        table.add_row(f"{failure.model}: failed", f"{failure.sparsity:.0%}", style="red")
    return table


def main(
    results_file: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    readme: Annotated[Path | None, typer.Option(help="file whose section is replaced")] = None,
) -> None:
    """Turn a result file of the models into a Markdown table."""
    section = markdown_section(ModelResults.read(results_file))
    if readme is None:
        print(section)
    else:
        text = readme.read_text(encoding="utf-8")
        write_text(readme, replace_section(text, SECTION, section))


if __name__ == "__main__":
    typer.run(main)
