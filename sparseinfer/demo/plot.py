"""The demo's picture: how accuracy and sparsity went, and what the latency became."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparseinfer.demo.results import Results, Speed, gain
from sparseinfer.demo.training import Curve

ACCURACY = "#0b6e99"
SPARSITY = "#d9730d"
BARS = {
    "dense": "#9aa5b1",
    "pruned": "#c9b18f",
    "converted": "#0f7b6c",
    "dense int8": "#5d6b7a",
    "int8": "#0a4f46",
}
LABELS = {
    "dense": "dense",
    "pruned": "pruned,\ndense\nkernels",
    "converted": "pruned,\nsparse\nkernels",
    "dense int8": "dense,\nint8",
    "int8": "pruned,\nsparse,\nint8",
}


def draw(results: Results) -> bytes:
    """Return the picture as PNG bytes."""
    figure = Figure(figsize=(15, 4.6), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    widths = [2.0, *[1.4] * len(results.speeds)]
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    _draw_curve(axes[0], results)
    for axis, speed in zip(axes[1:], results.speeds, strict=True):
        _draw_bars(axis, speed)
    figure.suptitle(f"{results.dataset}: {results.machine}", fontsize=11)
    stream = io.BytesIO()
    canvas.print_png(stream)
    return stream.getvalue()


def _draw_curve(axis: Axes, results: Results) -> None:
    curve: Curve = results.curve
    steps = [0, *curve.steps]
    percent_sparse = [0.0, *(100 * value for value in curve.sparsity)]
    axis.fill_between(steps, percent_sparse, color=SPARSITY, alpha=0.15)
    axis.plot(steps, percent_sparse, color=SPARSITY, marker=".", label="sparsity of pruned layers")
    axis.plot(
        curve.steps,
        [100 * value for value in curve.accuracy],
        color=ACCURACY,
        marker=".",
        label="validation accuracy",
    )
    axis.axvline(results.dense_steps, color="0.4", linestyle=":", linewidth=1)
    axis.text(results.dense_steps, 2, " pruning starts", color="0.3", fontsize=9)
    axis.set(xlabel="training step", ylabel="percent", ylim=(0, 101), xlim=(0, curve.steps[-1]))
    axis.grid(axis="y", alpha=0.25)
    axis.set_title("training, then pruning with fine-tuning", fontsize=11)
    axis.legend(loc="center left", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_bars(axis: Axes, speed: Speed) -> None:
    names = [name for name in BARS if name in speed.latency]
    latencies = [speed.latency[name] for name in names]
    medians = [latency.median_ms for latency in latencies]
    whiskers = [
        [latency.median_ms - latency.low_ms for latency in latencies],
        [latency.high_ms - latency.median_ms for latency in latencies],
    ]
    positions = range(len(names))
    axis.bar(positions, medians, color=[BARS[name] for name in names], width=0.7)
    axis.errorbar(positions, medians, yerr=whiskers, fmt="none", ecolor="0.25", capsize=3, lw=1)
    top = max(latency.high_ms for latency in latencies)
    for position, latency in zip(positions, latencies, strict=True):
        axis.text(
            position,
            latency.high_ms + 0.02 * top,
            f"{latency.median_ms:.3g} ms",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axis.set_xticks(positions, [LABELS[name] for name in names], fontsize=9)
    axis.set_ylim(0, 1.15 * top)
    axis.set_ylabel("milliseconds a batch (median, quartiles)")
    axis.set_title(f"batch {speed.batch}: {gain(speed.over_pruned)}", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
