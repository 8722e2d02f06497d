"""Run the peers: ``python -m benchmarks.peers --out benchmarks/results/peers/NAME.json``.

Each engine runs in a process of its own, in turns with ours, after its result was checked against
float64. ``--setup`` installs the engines first, each in an environment of its own.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.command import (
    SAVE_EVERY,
    end_as_by_ctrl_c,
    parse_sparsities,
    parse_threads,
    progress_bar,
    warn_if_busy,
)
from benchmarks.peers import catalogue
from benchmarks.peers.catalogue import OPT_IN, PEERS, TARGETS, Peer, Target
from benchmarks.peers.crew import Crew
from benchmarks.peers.environments import CACHE, PACKAGES, set_up
from benchmarks.peers.measure import measure
from benchmarks.peers.results import PeerResults, PeerRow
from benchmarks.peers.table import not_run_list, peers_table
from benchmarks.peers.turns import TurnPlan
from benchmarks.record import shown

PLAN = TurnPlan()
QUICK_PLAN = TurnPlan(rounds=4, floor=2, samples=3, turn=1e-2, budget=0.1)


def parse_peers(text: str, deepsparse: bool) -> list[Peer]:
    """Return the peers in a list such as ``sparseinfer,openvino``; ``all`` is every one.

    DeepSparse takes part only with ``deepsparse``.

    Raises:
        typer.BadParameter: a peer does not exist, or is DeepSparse without ``deepsparse``.
    """
    known = {peer.name: peer for peer in PEERS}
    if text == "all":
        return [peer for peer in PEERS if deepsparse or peer.name != OPT_IN]
    names = text.split(",")
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"expected all or some of {', '.join(known)}, got {name!r}")
    if OPT_IN in names and not deepsparse:
        raise typer.BadParameter(
            f"expected --deepsparse beside the peer {OPT_IN}, got none: its licence is for "
            "evaluation, try adding it where that is what you do"
        )
    return [
        peer for name, peer in known.items() if name in names or (name == OPT_IN and deepsparse)
    ]


def parse_targets(text: str, quick: bool) -> list[Target]:
    """Return the layers whose name holds an item, in whole words, of a list: ``conv 3x3,N=1``.

    Raises:
        typer.BadParameter: an item is in no layer's name.
    """
    among = catalogue.QUICK if quick else TARGETS
    if text == "all":
        return list(among)
    items = [item.strip() for item in text.split(",")]
    chosen: list[Target] = []
    for item in items:
        word = re.compile(rf"(?<!\w){re.escape(item)}(?!\w)")
        found = [target for target in TARGETS if item and word.search(target.name)]
        if not found:
            names = "; ".join(target.name for target in TARGETS)
            raise typer.BadParameter(f"expected all or parts of {names}, got {item!r}")
        chosen += found
    return [target for target in TARGETS if target in chosen]


def line_of(target: Target, sparsity: float, threads: int, rows: Sequence[PeerRow]) -> str:
    """Return what was found of one layer in a line: medians in milliseconds, ours first."""
    times = ", ".join(
        f"{row.peer} {row.seconds.median * 1e3:.3g}{' (best dense)' if row.is_best else ''}"
        for row in rows
    )
    return f"{target.name} {sparsity:.0%} T={threads}: {times or 'nothing ran'}"


def run_targets(
    targets: Sequence[Target], sparsities: Sequence[float], threads: Sequence[int],
    peers: Sequence[Peer], plan: TurnPlan, cache: Path, results: PeerResults, out: Path,
    progress: Progress,
) -> None:  # fmt: skip
    """Measure the layers, adding to ``results`` and writing them as they grow."""
    task = progress.add_task("", total=len(targets) * len(sparsities) * len(threads))
    saved = time.monotonic()
    for count in threads:
        with Crew(count, cache) as crew, tempfile.TemporaryDirectory() as folder:
            crew.start(peers)
            for target, sparsity in itertools.product(targets, sparsities):
                progress.update(task, description=f"{target.name} {sparsity:.0%} T={count}")
                progress.refresh()
                rows, not_run = measure(
                    target, sparsity, count, peers, crew.worker_of, plan, Path(folder)
                )
                results.rows += rows
                results.not_run += not_run
                results.peers |= crew.versions
                line = line_of(target, sparsity, count, rows)
                progress.console.print(line, highlight=False, soft_wrap=True)
                progress.advance(task)
                if time.monotonic() - saved > SAVE_EVERY:
                    results.write(out)
                    saved = time.monotonic()


def main(
    cases: Annotated[str, typer.Option(help="all, or parts of layers' names")] = "all",
    peers: Annotated[
        str, typer.Option(help=f"all, or some of {','.join(p.name for p in PEERS)}")
    ] = "all",
    sparsity: Annotated[str, typer.Option(help="shares of zeros, such as 0.8,0.9")] = "",
    threads: Annotated[str, typer.Option(help="thread counts, such as 1,2")] = "1,2",
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = Path(
        "benchmarks/results/peers/latest.json"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="a few layers, few rounds, not for quoting")
    ] = False,
    deepsparse: Annotated[
        bool,
        typer.Option("--deepsparse", help="DeepSparse too: its licence is for evaluation only"),
    ] = False,
    setup: Annotated[
        bool, typer.Option("--setup", help="install the peers and end; once is enough")
    ] = False,
    cache: Annotated[Path, typer.Option(help="folder of the peers' environments")] = CACHE,
) -> None:
    """Measure sparseinfer beside other engines, each in its own process and environment."""
    console = Console()
    if setup:
        names = [name for name in PACKAGES if deepsparse or name != OPT_IN]
        if not set_up(names, cache, console.print):
            raise typer.Exit(1)
        return
    chosen, targets = parse_peers(peers, deepsparse), parse_targets(cases, quick)
    default = catalogue.QUICK_SPARSITIES if quick else catalogue.SPARSITIES
    sparsities = parse_sparsities(sparsity) if sparsity else list(default)
    counts = parse_threads(threads)
    plan = QUICK_PLAN if quick else PLAN
    results = PeerResults.begin(
        options_of(cases, peers, sparsity, threads, out, quick, deepsparse),
        {
            "peers": [peer.name for peer in chosen],
            "sparsities": sparsities,
            "threads": counts,
            "quick": quick,
            "rounds": plan.rounds,
            "sample_seconds": plan.sample,
            "samples_a_turn": plan.samples,
            "budget_seconds": plan.budget,
        },
    )
    warn_if_busy(console, results.machine["cores"])
    end_as_by_ctrl_c()
    try:
        # Drawn between measurements only: a thread that draws would take part in them.
        with progress_bar(console, auto_refresh=False) as progress:
            run_targets(targets, sparsities, counts, chosen, plan, cache, results, out, progress)
        results.complete = True
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what was measured is kept[/]")
        raise typer.Exit(130) from None
    finally:
        results.write(out)
        for text in (peers_table(results), not_run_list(results.not_run)):
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(results.rows)} rows written to {out}")


def options_of(
    cases: str, peers: str, sparsity: str, threads: str, out: Path, quick: bool, deepsparse: bool
) -> list[str]:
    """Return the options that repeat the run, without the folders of this machine."""
    words = ["--cases", cases, "--peers", peers, *(["--sparsity", sparsity] if sparsity else [])]
    words += ["--threads", threads, "--out", shown(out)]
    return [*words, *(["--quick"] if quick else []), *(["--deepsparse"] if deepsparse else [])]


if __name__ == "__main__":
    typer.run(main)
