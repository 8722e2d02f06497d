"""What the demo shows on the terminal; plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from sparseinfer.convert.model_report import Report
from sparseinfer.demo.results import Latency, Ratio, Results, gain, int8_loss

MODELS = ("dense", "pruned", "converted")

Advance = Callable[[str], None]


@contextmanager
def stage(console: Console, title: str, total: int) -> Iterator[Advance]:
    """Show the progress of one stage; yields the function that advances it by one step.

    On a terminal that is a bar with the last status beside it; elsewhere, and where there are no
    steps (`total` 0), two plain lines, one when the stage starts and one when it ends.
    """
    last = ""
    start = time.perf_counter()
    if not console.is_terminal or total == 0:
        console.print(f"{title} ...", highlight=False)

        def remember(status: str) -> None:
            nonlocal last
            last = status

        yield remember
        ending = f": {last}" if last else ""
        console.print(f"  done in {time.perf_counter() - start:.1f} s{ending}", highlight=False)
        return
    columns = (
        TextColumn("{task.description:<17}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}", style="dim"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, status="")

        def advance(status: str) -> None:
            progress.update(task, advance=1, status=status)

        yield advance


def layers(found: Report) -> Table:
    """Return the report's layers as a table that fits a terminal of 80 columns."""
    table = _table("layer by layer (milliseconds: mean of a batch of 1 and one of 32)")
    for heading in ("layer", "weight", "zeros", "runs as"):
        table.add_column(heading, no_wrap=True)
    for heading in ("dense ms", "now ms", "gain", "kB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in found.layers:
        times = ["", "", ""]
        if layer.dense_ms is not None and layer.ms is not None:
            speedup = layer.dense_ms / layer.ms
            times = [_number(layer.dense_ms), _number(layer.ms), f"{speedup:.2f}x"]
        size = f"{layer.bytes / 1000:.0f}"
        if layer.is_sparse:
            size = f"{layer.dense_bytes / 1000:.0f} -> {size}"
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, shape, f"{layer.sparsity:.1%}", layer.format, *times, size)
    return table


def reasons(found: Report) -> list[str]:
    """Return why layers with zeros stayed dense, one line each, and the report's sentence."""
    kept = [
        f"{layer.name} stayed dense: {layer.reason}"
        for layer in found.layers
        if not layer.is_sparse and layer.sparsity > 0
    ]
    return [*kept, found.sentence]


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def summary(results: Results) -> Table:
    """Return the table of what was gained and lost."""
    table = _table("the whole network")
    table.add_column("", no_wrap=True)
    table.add_column("dense", justify="right")
    table.add_column("pruned,\ndense kernels", justify="right")
    table.add_column("pruned,\nsparse kernels", justify="right", style="bold")
    table.add_column("gain over\npruned", justify="right")
    accuracy = results.accuracy
    table.add_row("test accuracy", *(f"{accuracy[name]:.2%}" for name in MODELS), "")
    for speed in results.speeds:
        times = [_milliseconds(speed.latency[name]) for name in MODELS]
        table.add_row(f"latency, batch {speed.batch}", *times, _gain(speed.over_pruned))
    sizes = results.sizes
    for label, before, after in (
        ("in memory", sizes.pruned_memory, sizes.converted_memory),
        ("on disk", sizes.pruned_disk, sizes.converted_disk),
    ):
        sizes_shown = (_kilobytes(before), _kilobytes(before), _kilobytes(after))
        table.add_row(label, *sizes_shown, f"{before / after:.2f}x smaller")
    return table


def footnotes(results: Results) -> list[str]:
    """Return the sentences under the table: how it was measured, and whether the outputs agree."""
    layouts = [f"{speed.layout['pruned']} at batch {speed.batch}" for speed in results.speeds]
    agreement = results.agreement
    same = agreement.images - agreement.different_classes
    return [
        f"The pruned network was trained for {results.prune_steps} steps more than the dense one.",
        "Latency: median (quartiles), timed turn by turn in one process, "
        f"{results.threads} thread{'s' if results.threads > 1 else ''}; dense kernels in the "
        f"faster of torch's memory formats ({', '.join(layouts)}).",
        f"The converted network names the same class as the pruned one on {same:,} of "
        f"{agreement.images:,} test images; the logits differ by at most "
        f"{agreement.largest_logit_difference:.1e}.",
    ]


def int8(results: Results) -> Table:
    """Return the table of the networks in int8 beside those in float32."""
    table = _table("in int8, beside float32")
    table.add_column("", no_wrap=True)
    for heading in ("accuracy", *(f"batch {speed.batch}" for speed in results.speeds), "on disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    disk = {
        "dense": results.sizes.pruned_disk,
        "dense int8": results.int8.dense_disk,
        "converted": results.sizes.converted_disk,
        "int8": results.int8.disk,
    }
    for label, name in (
        ("dense, float32", "dense"),
        ("dense, int8 by torch", "dense int8"),
        ("sparse, float32", "converted"),
        ("sparse, int8", "int8"),
    ):
        size = disk[name]
        if size is None:
            continue
        times = [f"{_number(speed.latency[name].median_ms)} ms" for speed in results.speeds]
        style = "bold" if name == "int8" else None
        table.add_row(label, f"{results.accuracy[name]:.2%}", *times, _kilobytes(size), style=style)
    return table


def int8_footnotes(results: Results) -> list[str]:
    """Return the sentences under the table of int8."""
    found = results.int8
    agreement = found.agreement
    same = agreement.images - agreement.different_classes
    lost = round(int8_loss(results), 2)
    beside = (
        f"{abs(lost):.2f} points {'lower' if lost > 0 else 'higher'} than" if lost else "that of"
    )
    lines = [
        f"Sparse int8: {found.layers} of {len(results.report['layers'])} layers, with scales from "
        f"{found.calibration_images} training images. The accuracy is {beside} sparse float32, "
        f"and the class the same as the pruned network's on {same:,} of {agreement.images:,} test "
        "images."
    ]
    if found.missing:
        return [*lines, f"This build of torch has no dense int8 to compare with: {found.missing}."]
    gains = [
        f"{gain(speed.int8_over_dense_int8)} at batch {speed.batch}"
        for speed in results.speeds
        if speed.int8_over_dense_int8 is not None
    ]
    return [
        *lines,
        f"Beside dense int8 it is {', '.join(gains)}. Dense int8 is torch.ao's static quantisation "
        "of the whole dense network, int8 between layers too; each converted layer takes and gives "
        "float32.",
    ]


def _milliseconds(latency: Latency) -> str:
    median, low, high = map(_number, (latency.median_ms, latency.low_ms, latency.high_ms))
    return f"{median} ms\n({low}-{high})"


def _number(milliseconds: float) -> str:
    return f"{milliseconds:#.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f} kB"


def _gain(ratio: Ratio) -> str:
    return f"{gain(ratio)}\n({ratio.low:.2f}-{ratio.high:.2f})"
