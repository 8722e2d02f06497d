"""Alternate torch's operators with ours: ``python -m benchmarks.threads --threads 1,2``.

Both run on one team of OpenMP threads. If they did not, two teams would fight for the cores, each
spinning while the other works, and operators in turns would take longer than the same operators
apart. Each row compares so many calls of a torch operator followed by as many of one of our layers
("dense" in the result file) with the same calls in turns ("sparse"): 1 is no loss, and there is no
gain to be had. What else differs is the cache: in turns, each operator finds the other's data.

A thread of the process that comes or goes while operators alternate is a failure.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.cases import Case, ConvCase, LinearCase, Pattern
from benchmarks.command import parse_threads, warn_if_busy
from benchmarks.layer_data import LayerData
from benchmarks.native import Packed, best_row, pack
from benchmarks.record import shown
from benchmarks.results import Failure, Results, Row, make_row
from benchmarks.run import PLAN, QUICK_PLAN, finish
from sparseinfer import SparseConv2d, SparseLinear
from sparseinfer.timing.rounds import Plan, interleave

SUITE = "threads"
PATTERN = Pattern(0.9)
OURS: tuple[Case, ...] = (
    LinearCase(768, 768, 128),
    LinearCase(768, 768, 8),
    ConvCase(64, 64, 28, 3),
)
TURNS = 8
"""Calls of each operator in one sample."""

Call = Callable[[], object]


class ThreadResults(Results):
    """What this program writes: rows and all as those of `benchmarks.run`."""

    PROGRAM = "benchmarks.threads"


@dataclass(frozen=True)
class TorchOperator:
    """An operator of torch and the library that runs it, of about as much work as one of ours."""

    name: str
    call: Call


def torch_operators() -> list[TorchOperator]:
    """Return one operator of each of the libraries through which torch uses its threads."""
    values = torch.randn(512, 1024)
    tokens, weight = torch.randn(64, 512), torch.randn(512, 512)
    image, kernel = torch.randn(1, 32, 28, 28), torch.randn(64, 32, 3, 3)
    return [
        TorchOperator("torch.relu, 512x1024", lambda: torch.relu(values)),
        TorchOperator("F.linear 512x512 N=64", lambda: torch.nn.functional.linear(tokens, weight)),
        TorchOperator(
            "F.conv2d 3x3 32->64 @28",
            lambda: torch.nn.functional.conv2d(image, kernel, padding=1),
        ),
    ]


def sparse_layer(case: Case) -> tuple[LayerData, Packed, Call]:
    """Return the case's data, its packed weight, and a call of the drop-in layer.

    Raises:
        WrongResultError: the layer's result is beyond the rounding bound.
    """
    data = LayerData(case, PATTERN)
    packed = pack(case, PATTERN, "panel")
    layer: SparseLinear | SparseConv2d
    if isinstance(case, ConvCase):
        layer = SparseConv2d(
            case.c, case.m, case.kernel, case.stride, case.padding, packed=packed.blob
        )
    else:
        layer = SparseLinear(case.k, case.m, packed=packed.blob)
    layer.load_state_dict({"packed": packed.blob, "bias": data.bias})
    data.verify("layer", layer(data.x))
    return data, packed, lambda: layer(data.x)


def apart(first: Call, second: Call) -> Call:
    """Return a call of all ``TURNS`` of ``first``, then all of ``second``.

    Example:
        >>> order = []
        >>> apart(lambda: order.append("a"), lambda: order.append("b"))()
        >>> "".join(order)
        'aaaaaaaabbbbbbbb'
    """

    def run() -> None:
        for call in (first, second):
            for _ in range(TURNS):
                call()

    return run


def in_turns(first: Call, second: Call) -> Call:
    """Return a call of ``first`` and ``second`` in turns, ``TURNS`` times each.

    Example:
        >>> order = []
        >>> in_turns(lambda: order.append("a"), lambda: order.append("b"))()
        >>> "".join(order)
        'abababababababab'
    """

    def run() -> None:
        for _ in range(TURNS):
            first()
            second()

    return run


def os_threads() -> frozenset[str]:
    """Return the numbers of the process's threads; nothing where the system does not list them."""
    try:
        return frozenset(os.listdir("/proc/self/task"))
    except OSError:
        return frozenset()


def threads_changed(run: Call, times: int = 10) -> int:
    """Return how many of the process's threads came or went over calls of ``run`` after the first.

    Example:
        >>> threads_changed(lambda: None)
        0
    """
    run()
    before = os_threads()
    changed: set[str] = set()
    for _ in range(times):
        run()
        changed |= os_threads() ^ before
    return len(changed)


def measure(operator: TorchOperator, case: Case, threads: int, plan: Plan) -> tuple[Row, int]:
    """Time the operator and the case's layer, apart and in turns, on ``threads`` threads.

    Returns the row, and how many threads of the process came or went.

    Raises:
        WrongResultError: the layer's result is beyond the rounding bound.
    """
    torch.set_num_threads(threads)
    with torch.inference_mode():
        data, packed, ours = sparse_layer(case)
        alternating = in_turns(operator.call, ours)
        changed = threads_changed(alternating)
        calls = {"apart": apart(operator.call, ours), "in turns": alternating}
        found = interleave(calls, plan, collect=False)
    row = make_row(
        found,
        "in turns",
        baseline="apart",
        suite=SUITE,
        group=operator.name,
        case=f"{case.name} with {operator.name}",
        op=case.op,
        m=case.m,
        k=case.k,
        n=case.n,
        pattern=PATTERN.name,
        sparsity=PATTERN.sparsity,
        nnz=data.nnz,
        threads=threads,
        promised=False,
        kernel=best_row("panel", case),
        dense_bytes=data.dense_bytes,
        packed_bytes=packed.blob.numel(),
        copies=(1, 1),
    )
    return row, changed


def main(
    threads: Annotated[str, typer.Option(help="thread counts, such as 1,2")] = "1,2",
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = Path(
        "benchmarks/results/latest-threads.json"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="fewer rounds")] = False,
) -> None:
    """Measure what torch's operators and ours lose by alternating, and write a result file."""
    console = Console()
    counts = parse_threads(threads)
    plan = QUICK_PLAN if quick else PLAN
    results = ThreadResults.begin(
        ["--threads", threads, "--out", shown(out), *(["--quick"] if quick else [])],
        {
            "suites": [SUITE],
            "threads": counts,
            "quick": quick,
            "rounds": plan.rounds,
            "turns": TURNS,
        },
    )
    warn_if_busy(console, results.machine["cores"])
    before = torch.get_num_threads()
    try:
        for count, operator, case in itertools.product(counts, torch_operators(), OURS):
            row, changed = measure(operator, case, count, plan)
            results.rows.append(row)
            if changed:
                facts = (SUITE, row.case, PATTERN.name, PATTERN.sparsity, count)
                error = f"{changed} threads of the process came or went while operators alternated"
                results.failures.append(Failure(*facts, error))
            console.print(
                f"{row.case} T={count}: {row.speedup.median:.2f} "
                f"({row.speedup.q1:.2f}-{row.speedup.q3:.2f}), {changed} threads came or went",
                highlight=False,
                soft_wrap=True,
            )
    finally:
        torch.set_num_threads(before)
    results.complete = not results.failures
    finish(results, out, console)
    if results.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
