"""How a weight is filled: what beside density and pattern decides how long its kernels take."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["bucket", "occupancy"]

PANEL_ROWS = 4
"""Rows of a panel of the panel format, which walks through the columns that any of them fills."""


def occupancy(weight: Tensor) -> str:
    """Shares of the rows, the input channels and the columns of panels that hold a non-zero.

    `weight` is `[M, ...]`, output rows first. Shares are those that stand for all near them
    (`bucket`): weights of equal occupancy share a comparison.

    Example:
        >>> weight = torch.ones(8, 4)
        >>> weight[2:] = 0
        >>> occupancy(weight)
        'rows 0.24, channels 1, panels 0.5'
    """
    kept = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    columns = weight.flatten(1) != 0
    panels = pad(columns, (0, 0, 0, -len(columns) % PANEL_ROWS))
    shares = {
        "rows": _share(columns.any(1)),
        "channels": _share(kept.any(0)),
        "panels": _share(panels.unflatten(0, (-1, PANEL_ROWS)).any(1)),
    }
    return ", ".join(f"{name} {bucket(share):g}" for name, share in shares.items())


def _share(flags: Tensor) -> float:
    return float(torch.count_nonzero(flags)) / max(1, flags.numel())


def bucket(density: float) -> float:
    """The density, 0 to 1, that stands for all near it: those share a comparison.

    Steps are of 0.02 above 0.2 and of a tenth below, as a kernel's time follows the ratio.

    Example:
        >>> bucket(0.507), bucket(0.1), bucket(0.104)
        (0.5, 0.103, 0.103)
    """
    if density >= 0.2:
        return round(round(density / 0.02) * 0.02, 2)
    step = round(math.log(max(density, 1e-4) / 0.2, 1.1))
    return float(f"{0.2 * 1.1**step:.3g}")
