"""Run the model benchmarks: ``python -m benchmarks.models --out benchmarks/results/models/X.json``.

Each model is pruned, converted, compared with float64, then timed in turns against itself dense.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import describe_commit, describe_machine, describe_versions
from benchmarks.models.catalogue import MODELS
from benchmarks.models.measure import measure, pruned
from benchmarks.models.packages import MissingPackageError
from benchmarks.models.rows import ModelFailure, ModelResults, ModelRow, Skipped
from benchmarks.models.table import console_table, layers_of
from benchmarks.models.workload import Workload
from benchmarks.results import to_json, write_text
from benchmarks.run import BUSY_LOAD, parse_threads
from sparseinfer.timing.rounds import Plan

PLAN = Plan(rounds=15, floor=9, least=1.0, budget=20.0)
QUICK_PLAN = Plan(rounds=5, floor=3, least=0.0, budget=1.0)


def parse_models(text: str) -> list[str]:
    """Return the models in a list such as ``minilm,vit-b16``; ``all`` is every model.

    Raises:
        typer.BadParameter: a model does not exist.
    """
    names = list(MODELS) if text == "all" else text.split(",")
    for name in names:
        if name not in MODELS:
            raise typer.BadParameter(f"expected all or some of {', '.join(MODELS)}, got {name!r}")
    return names


def parse_sparsities(text: str) -> list[float]:
    """Return the sparsities in a list such as ``0.8,0.9``.

    Raises:
        typer.BadParameter: an item is not a number from 0 to below 1.
    """
    try:
        values = [float(item) for item in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value < 1 for value in values):
        raise typer.BadParameter(f"expected sparsities such as 0.8,0.9, got {text!r}")
    return values


def describe_command(models: str, sparsity: str, threads: str, out: Path, quick: bool) -> str:
    """Return the command that repeats the run, without the folders of this machine."""
    shown = out.name if out.is_absolute() else out.as_posix()
    words = ["python", "-m", "benchmarks.models", "--models", models, "--sparsity", sparsity]
    words += ["--threads", threads, "--out", shown, *(["--quick"] if quick else [])]
    return shlex.join(words)


def describe_model_versions() -> dict[str, object]:
    """Return the versions of what is measured, and of transformers where it is installed."""
    try:
        return {**describe_versions(), "transformers": importlib.metadata.version("transformers")}
    except importlib.metadata.PackageNotFoundError:
        return describe_versions()


def line_of(row: ModelRow) -> str:
    """Return what was found of one model in a line."""
    flag = "[red]slower:[/] " if row.is_slower else ""
    written = "" if row.difference.tokens is None else f", {row.difference.tokens} tokens equal"
    return (
        f"{flag}{row.model} {row.sparsity:.0%} T={row.threads}: "
        f"{row.dense.seconds.median * 1e3:.2f} ms to {row.converted.seconds.median * 1e3:.2f} ms, "
        f"{row.speedup.median:.2f}x, layers {layers_of(row)}, "
        f"converted in {row.conversion_seconds:.1f} s, "
        f"outputs within {row.difference.between:.1g}{written}"
    )


def run_models(
    names: Sequence[str], sparsities: Sequence[float], threads: Sequence[int], plan: Plan,
    results: ModelResults, progress: Progress, save: Callable[[], None],
) -> None:  # fmt: skip
    """Measure the models, adding to ``results`` and saving them as they grow."""
    task = progress.add_task("", total=len(names) * len(sparsities) * len(threads))
    for name in names:
        progress.update(task, description=f"{name}: loading")
        try:
            workload = MODELS[name]()
        except MissingPackageError as error:
            results.skipped.append(Skipped(name, str(error)))
            progress.console.print(f"[yellow]skipped:[/] {name}: {error}", soft_wrap=True)
            progress.advance(task, len(sparsities) * len(threads))
            continue
        for sparsity in sparsities:
            progress.update(task, description=f"{name}: pruning to {sparsity:.0%}")
            sparse, zeros = pruned(workload, sparsity)
            for count in threads:
                progress.update(task, description=f"{name} {sparsity:.0%} T={count}")
                run_one(name, sparse, sparsity, zeros, count, plan, results, progress.console)
                progress.advance(task)
                save()


def run_one(
    name: str, workload: Workload, sparsity: float, zeros: float, threads: int, plan: Plan,
    results: ModelResults, console: Console,
) -> None:  # fmt: skip
    """Add the row of one model to ``results``, or what went wrong: the others go on."""
    try:
        row = measure(name, workload, sparsity, zeros, threads, plan)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        results.failures.append(ModelFailure(name, sparsity, threads, text))
        console.print(f"[red]failed:[/] {name} {sparsity:.0%} T={threads}: {text}", soft_wrap=True)
    else:
        results.rows.append(row)
        console.print(line_of(row), highlight=False, soft_wrap=True)


def main(
    models: Annotated[str, typer.Option(help=f"all, or some of {','.join(MODELS)}")] = "all",
    sparsity: Annotated[str, typer.Option(help="shares of zeros, such as 0.8,0.9")] = "0.8,0.9",
    threads: Annotated[str, typer.Option(help="thread counts, such as 1,2")] = "1,2",
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = Path(
        "benchmarks/results/models/latest.json"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="few rounds, not for quoting")] = False,
) -> None:
    """Prune whole models, convert them, compare every output, and time them against dense."""
    # Weights come from installed packages and shapes from configurations: no hub is asked. Both are
    # read when a builder imports transformers.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    console = Console()
    names, sparsities, counts = (
        parse_models(models),
        parse_sparsities(sparsity),
        parse_threads(threads),
    )
    plan = QUICK_PLAN if quick else PLAN
    results = ModelResults(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=describe_command(models, sparsity, threads, out, quick),
        commit=describe_commit(),
        versions=describe_model_versions(),
        machine=describe_machine(),
        settings={
            "models": names,
            "sparsities": sparsities,
            "threads": counts,
            "quick": quick,
            "rounds": plan.rounds,
            "sample_seconds": plan.sample,
            "budget_seconds": plan.budget,
        },
    )
    load = os.getloadavg()[0] / results.machine["cores"]
    if load > BUSY_LOAD:
        console.print(
            f"[yellow]the machine is busy (load {load:.2f} a core): ratios will spread[/]"
        )

    def save() -> None:
        write_text(out, to_json(results))

    # A request to end is taken like Ctrl-C: what was measured is written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = torch.get_num_threads()
    try:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as progress:
            run_models(names, sparsities, counts, plan, results, progress, save)
        results.complete = not results.failures and not results.skipped
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what was measured is kept[/]")
        raise typer.Exit(130) from None
    finally:
        torch.set_num_threads(before)
        save()
        console.print(console_table(results))
        console.print(f"{len(results.rows)} rows written to {out}")
    if results.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
