"""How much of each weight is lost at each sparsity: which layers bear pruning, without any data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseinfer.checkpoints.checkpoint import open_checkpoint
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.prunable import choose
from sparseinfer.plotting import name_lines, need_matplotlib, write_figure
from sparseinfer.progress import track

__all__ = ["SPARSITIES", "WeightErrors", "magnitude_errors", "scan_checkpoint"]

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class WeightErrors:
    """`errors[name][i]` is the error of a weight pruned to `sparsities[i]`, 0 to 1."""

    sparsities: list[float]
    errors: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists and numbers."""
        return asdict(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw one line a layer into a picture, by the suffix of `path` (.png, .svg, .pdf).

        Raises:
            CheckpointError: matplotlib does not write such files.
            OSError: the file cannot be written.
        """
        need_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        target = Path(path)
        kind = target.suffix.removeprefix(".").lower()
        figure = Figure(figsize=(9, 5.5), dpi=130, layout="constrained")
        known = FigureCanvasAgg(figure).get_supported_filetypes()
        if kind not in known:
            raise CheckpointError(
                f"{target}: expected a suffix of {', '.join(sorted(known))}, got {kind!r}; try .png"
            )
        axis = figure.subplots()
        percent = [100 * sparsity for sparsity in self.sparsities]
        # The most sensitive layers come first, and are the ones the legend has room for.
        order = sorted(self.errors, key=lambda name: -sum(self.errors[name]))
        lines = [
            axis.plot(percent, self.errors[name], marker=".", lw=1.2, zorder=-rank)[0]
            for rank, name in enumerate(order)
        ]
        axis.set(xlabel="percent pruned", ylabel="relative error |W - pruned W| / |W|")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        rest = len(order) - _LEGEND_ROWS
        title = f"the {_LEGEND_ROWS} most sensitive of {len(order)}" if rest > 0 else None
        shown = order[:_LEGEND_ROWS]
        options = {"fontsize": 7, "title": title, "loc": "upper left"}
        name_lines(axis, lines[: len(shown)], shown, **options)
        write_figure(figure, target, kind)


_LEGEND_ROWS = 20


def magnitude_errors(weight: Tensor, sparsities: Sequence[float]) -> list[float]:
    """The relative error |W - pruned W| / |W| (Frobenius norms) of magnitude pruning.

    For each sparsity s the round(s * elements) smallest magnitudes are set to zero, which is what
    any mask of so many zeros loses at least. A weight of zeros loses nothing.

    Source: the layer-wise reconstruction error without data; Hassibi and Stork, "Second order
    derivatives for network pruning", NeurIPS 1992, for what it leaves out.

    Example:
        >>> magnitude_errors(torch.tensor([3.0, 4.0]), [0.5, 0.0])
        [0.6, 0.0]
    """
    energy = weight.detach().reshape(-1).double().square().sort().values.cumsum(0)
    total = float(energy[-1])
    errors = []
    for sparsity in sparsities:
        pruned = round(sparsity * len(energy))
        lost = float(energy[pruned - 1]) if pruned else 0.0
        errors.append((lost / total) ** 0.5 if total else 0.0)
    return errors


def scan_checkpoint(
    path: str | os.PathLike[str],
    sparsities: Sequence[float] = SPARSITIES,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    key: str | None = None,
    progress: bool | None = False,
) -> WeightErrors:
    """Compute `magnitude_errors` of every prunable weight of a checkpoint (see `choose`).

    It needs no model and no data, and so says what a weight loses, not what that costs in accuracy.

    Raises:
        CheckpointError: see `open_checkpoint` and `choose`; a sparsity outside [0, 1), or NaN or
            Inf in a weight.
    """
    if not sparsities or not all(0 <= sparsity < 1 for sparsity in sparsities):
        raise CheckpointError(
            f"expected sparsities of 0 <= sparsity < 1, got {list(sparsities)}; try 0.5,0.8,0.9"
        )
    checkpoint = open_checkpoint(path, key)
    checkpoint.make_plain()
    state: Mapping[str, Tensor] = checkpoint.tensors
    names = [choice.name for choice in choose(state, include, exclude) if choice.taken]
    errors = {}
    for name in track(names, len(names), "scanning", progress):
        bad = int(state[name].numel() - torch.isfinite(state[name]).sum())
        if bad:
            raise CheckpointError(
                f"{name}: expected finite weights, got {bad} NaN or Inf; try --exclude {name}"
            )
        errors[name] = magnitude_errors(state[name], sparsities)
    return WeightErrors(list(sparsities), errors)
