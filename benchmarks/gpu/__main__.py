"""``python -m benchmarks.gpu --out FILE``: GPU rows checked, then timed, in eight minutes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu import convolutions, correctness, decoder, layers
from benchmarks.gpu.contest import Budget, copy_bandwidth
from benchmarks.gpu.rows import MEASURED, REHEARSED, GpuResults, Missing
from benchmarks.gpu.show import roofline, table
from benchmarks.machine import describe_machine, describe_versions
from sparseinfer.kernels import registry, triton
from sparseinfer.timing.device_time import cache_bytes

LAYERS_SHARE = 0.7
"""Of the time after the decoder; the rest is for the convolutions."""


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Return the machine, with the GPU where there is one."""
    found = describe_machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": [properties.major, properties.minor],
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": cache_bytes(device),
            "cuda": torch.version.cuda,
        }
    return found


def measure(results: GpuResults, device: torch.device, budget: Budget, *, tiny: bool) -> None:
    """Fill in the results: every row's correctness, then what there is time for."""
    for row in registry.TRITON_ROWS:
        if reasons := row.unsupported_reasons(_simplest(row, device)):
            results.missing.append(Missing("correctness", row.name, row.name, "; ".join(reasons)))
            continue
        results.checks += correctness.check(row, device, tiny=tiny)
    results.copy_gb_s = copy_bandwidth(device)
    if not budget.run(lambda: decoder.run(device, results, tiny=tiny)):
        results.missing.append(Missing("decoder", "all", "all", "no time left"))
    layers.run(device, results, budget.part(LAYERS_SHARE), tiny=tiny)
    convolutions.run(device, results, budget.part(1.0), tiny=tiny)
    results.complete = True


def _simplest(row: registry.Row, device: torch.device) -> registry.Problem:
    dtype = getattr(torch, row.dtype.split(",")[0])
    return registry.Problem(row.op, row.format, device, dtype, N=max(1, row.least))


def main(
    out: Annotated[Path, typer.Option(help="Result file, JSON; the plot goes beside it, as PNG.")],
    budget: Annotated[float, typer.Option(help="Seconds in all.", min=1)] = 480.0,
    dry_run: Annotated[
        bool, typer.Option(help="Rehearse tiny shapes on the CPU, with TRITON_INTERPRET=1.")
    ] = False,
) -> None:
    """Check every GPU row against float64, then time layers, a decoder and convolutions."""
    if dry_run and not triton.interpreting():
        raise typer.BadParameter("expected TRITON_INTERPRET=1 with --dry-run, got none; try env")
    if not dry_run and not torch.cuda.is_available():
        raise typer.BadParameter(
            "expected a CUDA device, got none; try --dry-run with TRITON_INTERPRET=1, which "
            "measures nothing"
        )
    device = torch.device("cpu" if dry_run else "cuda")
    console = Console()
    spent = Budget(budget)
    results = GpuResults.begin(
        ["--out", out.name, "--budget", f"{budget:g}", *(["--dry-run"] if dry_run else [])],
        {"budget_s": budget, "dry_run": dry_run},
        kind=REHEARSED if dry_run else MEASURED,
        versions=describe_versions()
        | {"triton_interpret": os.environ.get("TRITON_INTERPRET", "0")},
        machine=describe_gpu(device),
    )
    try:
        measure(results, device, spent, tiny=dry_run)
    finally:
        results.write(out)
    roofline(results, out.with_suffix(".png"))
    console.print(table(results))
    for missing in results.missing:
        console.print(f"not measured: {missing.suite}: {missing.case}: {missing.contender}: "
                      f"{missing.why}")  # fmt: skip
    wrong = [check for check in results.checks if not check.passed]
    for check in wrong:
        console.print(f"wrong: {check}")
    console.print(f"{len(results.checks) - len(wrong)} of {len(results.checks)} checks passed")
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
