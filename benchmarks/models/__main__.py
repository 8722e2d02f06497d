"""Run the model benchmarks: ``python -m benchmarks.models --out benchmarks/results/models/X.json``.

Each model is pruned, converted, compared with float64, then timed in turns against itself dense.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.command import (
    end_as_by_ctrl_c,
    parse_names,
    parse_sparsities,
    parse_threads,
    progress_bar,
    warn_if_busy,
)
from benchmarks.machine import describe_versions
from benchmarks.models.catalogue import MODELS
from benchmarks.models.measure import measure, pruned
from benchmarks.models.packages import MissingPackageError
from benchmarks.models.rows import ModelFailure, ModelResults, ModelRow, Skipped
from benchmarks.models.table import console_table, layers_of
from benchmarks.models.workload import Workload
from benchmarks.record import shown
from sparseinfer.timing.rounds import Plan

PLAN = Plan(rounds=15, floor=9, least=1.0, budget=20.0)
QUICK_PLAN = Plan(rounds=5, floor=3, least=0.0, budget=1.0)


def options_of(models: str, sparsity: str, threads: str, out: Path, quick: bool) -> list[str]:
    """Return the options that repeat the run, without the folders of this machine."""
    words = ["--models", models, "--sparsity", sparsity, "--threads", threads]
    return [*words, "--out", shown(out), *(["--quick"] if quick else [])]


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
        parse_names(models, MODELS),
        parse_sparsities(sparsity),
        parse_threads(threads),
    )
    plan = QUICK_PLAN if quick else PLAN
    results = ModelResults.begin(
        options_of(models, sparsity, threads, out, quick),
        versions=describe_model_versions(),
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
    warn_if_busy(console, results.machine["cores"])

    def save() -> None:
        results.write(out)

    end_as_by_ctrl_c()
    before = torch.get_num_threads()
    try:
        with progress_bar(console) as progress:
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
