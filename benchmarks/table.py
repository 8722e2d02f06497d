"""From a result file to the tables of docs/speed.md and the plot, and docs/support.md's table.

``python -m benchmarks.table benchmarks/results/NAME.json --readme docs/speed.md --plot NAME.png``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import typer

from benchmarks.linearity import draw as draw_linearity
from benchmarks.linearity import lines_of
from benchmarks.plot import draw
from benchmarks.record import counted
from benchmarks.results import Results, Row, geometric_mean
from sparseinfer.files import write_text

GROUPS = (
    "linear N>=128",
    "linear N=8",
    "linear N=1",
    "linear N=1, cold",
    "linear N=1, cold, bfloat16 values",
    "conv 3x3",
    "conv 1x1",
)
"""Groups of cases in the order of the tables; a group that was not measured is left out."""

KERNEL_SUITES = ("kernels", "cold")
OTHER_SUITES = ("patterns", "linearity")
"""Suites with tables of their own."""


class RegistryRow(Protocol):
    """What the support table reads of a row of the registry."""

    @property
    def format(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def weight_types(self) -> tuple[str, ...]: ...
    @property
    def isa(self) -> str: ...
    @property
    def device(self) -> str: ...


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], *, right: bool = True) -> str:
    """Return a Markdown table: the first column to the left, the others to the right or not."""
    rule = ["---", *["---:" if right else "---"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def figure(value: float) -> str:
    """Return a ratio with about three significant digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """Return the geometric mean of the rows' speed-ups for each thread count."""
    parts = []
    for count in threads:
        figures = [row.speedup.median for row in rows if row.threads == count]
        parts.append(figure(geometric_mean(figures)) if figures else "-")
    return " / ".join(parts)


def losses(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """Return how many of the rows are slower than dense, for each thread count."""
    parts = []
    for count in threads:
        medians = [row.speedup.median for row in rows if row.threads == count]
        parts.append(f"{sum(median < 1 for median in medians)} of {len(medians)}")
    return " / ".join(parts)


def by_sparsity(
    labels: Sequence[str],
    rows: Sequence[Row],
    sparsities: Sequence[float],
    threads: Sequence[int],
    label_of: Callable[[Row], str],
) -> list[list[str]]:
    """Return a line for each label that has rows, a cell for each sparsity."""
    lines = []
    for label in labels:
        own = [row for row in rows if label_of(row) == label]
        if own:
            cells = [[row for row in own if row.sparsity == value] for value in sparsities]
            lines.append([label, *(cell(part, threads) for part in cells)])
    return lines


def unique(values: Iterable[str]) -> list[str]:
    """Return the values without repetitions, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def speedup_tables(results: Results) -> str:
    """Return the README's speed-up section: what was measured, the groups, then every case."""
    random = [
        row
        for row in results.rows
        if row.pattern == "unstructured" and row.suite not in OTHER_SUITES
    ]
    kernels = [row for row in random if row.suite in KERNEL_SUITES]
    module = [row for row in random if (row.suite, row.contender) == ("module", "module")]
    threads = sorted({row.threads for row in results.rows})
    sparsities = sorted({row.sparsity for row in random})
    header = ["sparsity", *(f"{value:.0%}" for value in sparsities)]

    lines = by_sparsity(GROUPS, kernels, sparsities, threads, lambda row: row.group)
    promised = "kernels, N>=128 and convolutions"
    own = [row for row in kernels if row.promised]
    lines += by_sparsity([promised], own, sparsities, threads, lambda _: promised)
    drop_in = "drop-in modules, the same cases"
    lines += by_sparsity([drop_in], module, sparsities, threads, lambda _: drop_in)
    if kernels:
        parts = [[row for row in kernels if row.sparsity == value] for value in sparsities]
        lines.append(["cases slower than dense", *(losses(part, threads) for part in parts)])

    sections = [introduction(results, threads), *([markdown(header, lines)] if lines else [])]
    cases = by_sparsity(
        unique(case_label(row) for row in kernels), kernels, sparsities, threads, case_label
    )
    if cases:
        sections.append(folded("Every case", markdown(["case", *header[1:]], cases)))
    formats = formats_table(results, threads)
    if formats:
        sections.append(folded("Formats, and torch.sparse, by the pattern of the zeros", formats))
    patterns = patterns_table(results, threads)
    if patterns:
        sections.append(folded("Zeros in blocks, n:m and whole channels", patterns))
    linearity = linearity_table(results)
    if linearity:
        sections.append(folded("Time against non-zeros times N", linearity))
    return "\n\n".join(sections)


def introduction(results: Results, threads: Sequence[int]) -> str:
    """Return the sentences that say what the figures are and where they come from."""
    versions = results.versions
    text = (
        f"Times faster than dense PyTorch {versions['torch']} "
        f"({versions['torch_cpu_capability']}), float32, {counted(threads)}, "
        f"on {results.place}. Below 1 is slower. Medians of interleaved "
        f"rounds, geometric means over a group's cases; in nine figures of ten the middle half of "
        f"the rounds lies within {spread(results.rows):.0%} of the median. Every result was "
        f"checked against float64 first. {results.source}"
    )
    return text + results.reservation


def spread(rows: Sequence[Row]) -> float:
    """Return the quartiles' distance from the median, as a share of it, that 90% of rows keep."""
    shares = [
        max(row.speedup.q3 - row.speedup.median, row.speedup.median - row.speedup.q1)
        / row.speedup.median
        for row in rows
    ]
    return sorted(shares)[int(0.9 * (len(shares) - 1))] if shares else 0.0


def case_label(row: Row) -> str:
    """Return a case's name, told apart where its weights were cold, or rounded."""
    if row.suite != "cold":
        return row.case
    rounded = ", values as bfloat16" if row.group.endswith("bfloat16 values") else ""
    return f"{row.case}, cold weights{rounded}"


def folded(title: str, body: str) -> str:
    """Return a section that a reader opens by a click."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def formats_table(results: Results, threads: Sequence[int]) -> str:
    """Return the formats side by side: geometric means by operation, N and pattern of zeros."""
    rows = [row for row in results.rows if row.suite == "formats"]
    patterns = unique(pattern_label(row) for row in rows)
    lines = []
    for group in unique(row.group for row in rows):
        for contender in unique(row.contender for row in rows if row.group == group):
            own = [row for row in rows if (row.group, row.contender) == (group, contender)]
            cells = [[row for row in own if pattern_label(row) == label] for label in patterns]
            lines.append([f"{contender}, {group}", *(cell(part, threads) for part in cells)])
    return markdown(["format, cases", *patterns], lines) if lines else ""


def patterns_table(results: Results, threads: Sequence[int]) -> str:
    """Return the structures beside random zeros: a line a format, a column a sparsity."""
    rows = [row for row in results.rows if row.suite == "patterns"]
    sparsities = sorted({row.sparsity for row in rows})
    lines: list[list[str]] = []
    for group in unique(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        labels = unique(structure_label(row) for row in own)
        lines += by_sparsity(labels, own, sparsities, threads, structure_label)
    header = ["cases, zeros, format", *(f"{value:.0%}" for value in sparsities)]
    return markdown(header, lines) if lines else ""


def structure_label(row: Row) -> str:
    """Return a row's group, the structure of its zeros, and the format."""
    return f"{row.group}, {row.pattern}, {row.contender}"


def linearity_table(results: Results) -> str:
    """Return how straight time over work is, for each N and number of threads."""
    lines = [
        [
            f"N={line.n}, {line.threads} thread{'s' if line.threads > 1 else ''}",
            f"{line.work[0]:.1e} to {line.work[-1]:.1e}",
            f"{line.slope:.3f}",
            f"{line.deviation:.0%}",
        ]
        for line in lines_of(results.rows)
    ]
    return markdown(["layer", "nnz x N", "slope", "furthest off the line"], lines) if lines else ""


def pattern_label(row: Row) -> str:
    """Return the sparsity of random zeros, or the name of the pattern."""
    return f"{row.sparsity:.0%}" if row.pattern == "unstructured" else row.pattern


def support_table(rows: Sequence[RegistryRow]) -> str:
    """Return which format runs which operation, of which weights and inputs, on what."""
    places: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        on_cpu = row.device == "cpu"
        place = row.isa if on_cpu else f"{row.isa} on {row.device}"
        # A GPU's kernels compute in the type of the weight.
        weights = ", ".join(row.weight_types) if on_cpu else row.dtype
        places.setdefault((row.format, row.op, weights, row.dtype), []).append(place)
    lines = [[*key, ", ".join(unique(names))] for key, names in sorted(places.items())]
    header = ["format", "operation", "weights", "inputs", "runs on, best first"]
    return markdown(header, lines, right=False)


def replace_section(text: str, name: str, body: str) -> str:
    """Return ``text`` with what stands between the section's two marker comments replaced.

    Raises:
        ValueError: the markers are not there exactly once each, the start before the end.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end or start in rest or end in before + after:
        raise ValueError(f"expected {start} and then {end} once each, got another text, try both")
    return f"{before}{start}\n{body}\n{end}{after}"


def main(
    results_file: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    readme: Annotated[Path | None, typer.Option(help="file whose sections are replaced")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw")] = None,
    linearity: Annotated[Path | None, typer.Option(help="PNG file: time against work")] = None,
    support: Annotated[Path | None, typer.Option(help="file with the table of kernels")] = None,
) -> None:
    """Turn a result file into the tables of a page and a plot of speed-up against sparsity."""
    from sparseinfer.kernels.registry import rows

    results = Results.read(results_file)
    tables = {"bench": (readme, speedup_tables(results))}
    tables["support"] = (support, support_table([row for row in rows() if not row.off]))
    for section, (page, body) in tables.items():
        if page is not None:
            text = page.read_text(encoding="utf-8")
            write_text(page, replace_section(text, section, body))
        elif readme is None and support is None:
            print(body, end="\n\n")
    if plot is not None:
        draw(results, GROUPS, KERNEL_SUITES, plot)
    if linearity is not None:
        draw_linearity(results, linearity)


if __name__ == "__main__":
    typer.run(main)
