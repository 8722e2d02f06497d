"""Run whole networks: ``python -m benchmarks.networks --out FILE.json``.

The same weights for every engine, each in a process of its own, in turns, after its output was
compared with float64.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.command import (
    end_as_by_ctrl_c,
    parse_names,
    parse_sparsities,
    parse_threads,
    progress_bar,
    warn_if_busy,
)
from benchmarks.networks.catalogue import DTYPES, ENTRANTS, SLOW_START, Entrant
from benchmarks.networks.definitions import NETWORKS
from benchmarks.networks.measure import command_of, measure, write_network
from benchmarks.networks.results import NetworkResults
from benchmarks.networks.table import as_markdown
from benchmarks.peers.catalogue import OPT_IN
from benchmarks.peers.crew import Crew
from benchmarks.peers.environments import CACHE
from benchmarks.peers.turns import TurnPlan
from benchmarks.record import shown

PLAN = TurnPlan(rounds=15, floor=5, samples=5, turn=0.1, budget=3.0)
QUICK_PLAN = TurnPlan(rounds=4, floor=2, samples=3, turn=0.05, budget=0.4)
QUICK_NETWORKS, QUICK_SPARSITIES = ("mlp", "mobilenet-v2"), (0.9,)


def chosen(
    engines: str, dtype: str, compile: bool = False, deepsparse: bool = False
) -> list[Entrant]:
    """The engines that are asked for, by name and by type.

    Raises:
        typer.BadParameter: one does not exist, or is DeepSparse without `deepsparse`.
    """
    dtypes = parse_names(dtype, DTYPES)
    names = parse_names(engines, ENTRANTS)
    left_out = set()
    if engines == "all":
        left_out = {
            name for name, asked in ((SLOW_START, compile), (OPT_IN, deepsparse)) if not asked
        }
    elif OPT_IN in names and not deepsparse:
        raise typer.BadParameter(
            f"expected --deepsparse beside the engine {OPT_IN}, got none: its licence is for "
            "evaluation only, try --deepsparse where you have agreed to it"
        )
    return [
        entrant
        for name, entrant in ENTRANTS.items()
        if name in names and entrant.dtype in dtypes and name not in left_out
    ]


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write")],
    networks: Annotated[str, typer.Option(help=f"all, or some of {', '.join(NETWORKS)}")] = "all",
    sparsity: Annotated[str, typer.Option(help="sparsities")] = "0,0.8,0.9,0.95",
    batch: Annotated[str, typer.Option(help="batch sizes")] = "1",
    threads: Annotated[str, typer.Option(help="thread counts")] = "2",
    engines: Annotated[str, typer.Option(help=f"all, or some of {', '.join(ENTRANTS)}")] = "all",
    dtype: Annotated[str, typer.Option(help=f"all, or some of {', '.join(DTYPES)}")] = "all",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile too: minutes")] = False,
    deepsparse: Annotated[
        bool,
        typer.Option("--deepsparse", help="DeepSparse too: its licence is for evaluation only"),
    ] = False,
    cache: Annotated[Path, typer.Option(help="folder of the peers' environments")] = CACHE,
    quick: Annotated[
        bool, typer.Option("--quick", help="two networks at 90%, few rounds: not for quoting")
    ] = False,
) -> None:
    """Time whole networks in every engine, and write what was found."""
    entrants = chosen(engines, dtype, compile, deepsparse)
    names = parse_names(networks, NETWORKS)
    values = parse_sparsities(sparsity)
    if quick:
        names = [name for name in names if networks != "all" or name in QUICK_NETWORKS]
        values = list(QUICK_SPARSITIES)
    batches, counts = parse_threads(batch), parse_threads(threads)
    console = Console(stderr=True)
    results = NetworkResults.begin(
        [shown(Path(item)) if item in (str(out), str(cache)) else item for item in sys.argv[1:]],
        {"quick": quick, "networks": names, "sparsities": values, "batches": batches,
         "threads": counts, "engines": [entrant.name for entrant in entrants]},
    )  # fmt: skip
    warn_if_busy(console, results.machine["cores"])
    end_as_by_ctrl_c()
    try:
        _run(results, entrants, QUICK_PLAN if quick else PLAN, cache, out, console)
        results.complete = True
    except KeyboardInterrupt:
        console.print("ended early: what was measured is kept")
    results.write(out)
    print(as_markdown(results))


def _run(
    results: NetworkResults, entrants: list[Entrant], plan: TurnPlan, cache: Path, out: Path,
    console: Console,
) -> None:  # fmt: skip
    by_peer = {entrant.name: entrant for entrant in entrants}
    settings = results.settings
    cells = [(network, size) for network in settings["networks"] for size in settings["batches"]]
    int8 = any(entrant.dtype == "int8" for entrant in entrants)
    with progress_bar(console) as progress:
        task = progress.add_task(
            "", total=len(cells) * len(settings["sparsities"]) * len(settings["threads"])
        )
        for count in settings["threads"]:
            with Crew(
                count, cache, lambda peer, n, cache: command_of(by_peer[peer.name], n, cache)
            ) as crew:
                for name, size in cells:
                    for value in settings["sparsities"]:
                        words = f"{name}, batch {size}, {value:.0%}"
                        progress.update(task, description=words)
                        with tempfile.TemporaryDirectory() as folder:
                            network = NETWORKS[name]
                            write_network(network, value, size, Path(folder), int8)
                            rows, not_run = measure(
                                network, value, size, count, entrants, crew.worker_of, plan,
                                Path(folder),
                            )  # fmt: skip
                        results.rows += rows
                        results.not_run += not_run
                        results.engines |= crew.versions
                        results.write(out)
                        progress.advance(task)


if __name__ == "__main__":
    typer.run(main)
