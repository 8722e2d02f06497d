"""Run the benchmarks: ``python -m benchmarks.run --suite all --out benchmarks/results/NAME.json``.

Every figure is a ratio to dense PyTorch, measured in the same process, in turns, after the result
was checked against float64.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from benchmarks import isa
from benchmarks.command import (
    SAVE_EVERY,
    end_as_by_ctrl_c,
    parse_names,
    parse_threads,
    progress_bar,
    warn_if_busy,
)
from benchmarks.record import shown
from benchmarks.results import Failure, Results, Row
from benchmarks.suites import SUITES, Job, jobs, measure
from benchmarks.targets import summarise
from sparseinfer.timing.rounds import Plan

PLAN = Plan()
QUICK_PLAN = Plan(rounds=5, floor=3, least=0.0, budget=0.25)


def options_of(suite: str, threads: str, out: Path, quick: bool, isa: str = "") -> list[str]:
    """Return the options that repeat the run, without the folders of this machine."""
    words = ["--suite", suite, "--threads", threads, "--out", shown(out)]
    return [*words, *(["--quick"] if quick else []), *(["--isa", isa] if isa else [])]


def print_summary(console: Console, results: Results) -> None:
    """Print the summary, a line a figure and thread count, and whatever failed."""
    sparsities = sorted({check.sparsity for check in results.summary})
    lines: dict[tuple[str, int], dict[float, str]] = {}
    for check in results.summary:
        text = f"{check.value:.2f}"
        if check.expected is not None:
            text = f"[{'green' if check.met else 'red'}]{text}[/] ({check.expected:g})"
        lines.setdefault((check.name, check.threads), {})[check.sparsity] = text
    headers = ("threads", *(f"{value:.0%}" for value in sparsities))
    table = Table(Column("measured (promised)", no_wrap=True), *headers)
    for (name, threads), cells in sorted(lines.items()):
        table.add_row(name, str(threads), *(cells.get(value, "") for value in sparsities))
    if lines:
        console.print(table)
    for failure in results.failures:
        console.print(f"[red]failed:[/] {failure.suite}, {failure.case}: {failure.error}")


def line_of(rows: list[Row]) -> str:
    """Return the speed-ups of one job in a line."""
    first = rows[0]
    ratios = ", ".join(f"{row.contender} {row.speedup.median:.2f}x" for row in rows)
    pattern = "" if first.pattern == "unstructured" else f" ({first.pattern})"
    return f"{first.suite}: {first.case} {first.sparsity:.0%}{pattern} T={first.threads}: {ratios}"


def run_jobs(
    todo: list[tuple[Job, int]], plan: Plan, results: Results, out: Path, progress: Progress
) -> None:
    """Measure the jobs, adding to ``results`` and writing them as they grow."""
    task = progress.add_task("", total=len(todo))
    saved = time.monotonic()
    for job, threads in todo:
        progress.update(task, description=f"{job.suite} {job.case.name} T={threads}")
        try:
            rows = measure(job, threads, plan)
        except (RuntimeError, ValueError) as error:
            facts = (job.suite, job.case.name, job.pattern.name, job.pattern.sparsity, threads)
            results.failures.append(Failure(*facts, str(error)))
            progress.console.print(f"[red]failed:[/] {job.case.name}: {error}")
        else:
            results.rows += rows
            progress.console.print(line_of(rows), highlight=False, soft_wrap=True)
        progress.advance(task)
        if time.monotonic() - saved > SAVE_EVERY:
            results.summary = summarise(results.rows)
            results.write(out)
            saved = time.monotonic()


def finish(results: Results, out: Path, console: Console) -> None:
    """Sum the rows up, write them, and print the summary."""
    results.summary = summarise(results.rows)
    results.write(out)
    print_summary(console, results)
    console.print(f"{len(results.rows)} rows written to {out}")


def capped(cap: str, console: Console) -> dict[str, str]:
    """Begin anew under the cap, if need be, and return what every library then says that it uses.

    Raises:
        typer.BadParameter: there is no such cap.
        typer.Exit: a library does not obey it.
    """
    try:
        isa.check_name(cap)
        isa.restart(cap, "benchmarks.run", sys.argv[1:])
        said = isa.check(cap)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except isa.CapError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    for name, text in said.items():
        console.print(f"{name}: {text}", highlight=False)
    return said


def main(
    suite: Annotated[str, typer.Option(help=f"all, or some of {','.join(SUITES)}")] = "all",
    threads: Annotated[str, typer.Option(help="thread counts, such as 1,2")] = "1,2",
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = Path(
        "benchmarks/results/latest.json"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="fewer cases, fewer rounds")] = False,
    cap: Annotated[str, typer.Option("--isa", help="cap ours and torch's kernels: avx2")] = "",
) -> None:
    """Measure sparseinfer against dense PyTorch and write a result file."""
    console = Console()
    counts, names = parse_threads(threads), parse_names(suite, SUITES)
    said = capped(cap, console) if cap else None
    plan = QUICK_PLAN if quick else PLAN
    todo = [(job, count) for job in jobs(names, quick=quick) for count in counts]
    results = Results.begin(
        options_of(suite, threads, out, quick, cap),
        {
            "suites": names,
            "threads": counts,
            "quick": quick,
            "isa": said,
            "rounds": plan.rounds,
            "sample_seconds": plan.sample,
            "budget_seconds": plan.budget,
        },
    )
    warn_if_busy(console, results.machine["cores"])
    end_as_by_ctrl_c()
    before = torch.get_num_threads()
    try:
        with progress_bar(console) as progress:
            run_jobs(todo, plan, results, out, progress)
        results.complete = not results.failures
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what was measured is kept[/]")
        raise typer.Exit(130) from None
    finally:
        torch.set_num_threads(before)
        finish(results, out, console)
    if results.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
