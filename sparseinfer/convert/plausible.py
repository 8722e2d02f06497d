"""Which timings are hard to believe: beside the cost model, beside each other, beside the whole.

A busy machine makes up figures with narrow intervals: where the threads of one side wait for a core
that others have, and those of the other side do not, every round tells the same nonsense.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from sparseinfer.convert.scan import Layer
from sparseinfer.timing import cost
from sparseinfer.timing.measure import Comparison
from sparseinfer.timing.rates import CONTENDERS
from sparseinfer.timing.tuning import ProblemKey

__all__ = ["APART", "Side", "apart", "beyond_layers", "beyond_zeros", "sums_up"]

SLACK = 10.0
"""Times by which a dense kernel may fall short of what its arithmetic would allow, and the cost
model be off, before a figure is in doubt."""

APART = 2.0
"""Ratio of two times of equal work from which one of them was interrupted."""


@dataclass(frozen=True)
class Side:
    """The dense side of a comparison: `key` is that of all layers whose dense sides are equal."""

    layer: Layer
    key: str
    problem: ProblemKey
    ms: float


def beyond_zeros(
    found: Comparison, layer: Layer, N: int, threads: int, format: str, device: torch.device
) -> str:
    """Why the zeros of `layer` cannot account for a speed-up; empty where they can.

    Skipping zeros gives 1 / density at most, times what the dense kernel wastes. On a CPU the cost
    model has to find it out of reach too, and tells what is suspiciously slow.
    """
    density = max(layer.density, 1.0 / max(1, layer.numel))
    if device.type != "cpu" or format not in CONTENDERS:
        modelled = None
    else:
        modelled = cost.estimate(
            layer.rows, layer.columns, N, layer.density, threads, format, layer.kind
        ).speedup  # fmt: skip
    if found.speedup > SLACK * max(1.0 / density, modelled or 0.0):
        return f"{found.speedup:.3g}x is more than skipping {1 - density:.0%} zeros can give"
    if modelled is not None and found.speedup * SLACK < min(modelled, 1.0 / density):
        return f"{found.speedup:.3g}x is far less than the {modelled:.3g}x of the cost model"
    return ""


def beyond_layers(found: Comparison, speedups: Iterable[float]) -> str:
    """Why a whole model cannot gain so much: more than any of its layers does; empty where it can.

    Example:
        >>> beyond_layers(Comparison(9.0, 1.0, 9.0, 8.0, 10.0, 8), [1.5, 2.0])
        'the whole model runs 9x, and no layer gains more than 2x'
    """
    most = max(speedups, default=0.0)
    if most <= 0 or found.speedup <= APART * max(1.0, most):
        return ""
    return f"the whole model runs {found.speedup:.3g}x, and no layer gains more than {most:.3g}x"


def apart(sides: Iterable[Side]) -> list[Side]:
    """Those that took `APART` times the least of their equals: they were interrupted.

    Example:
        >>> from sparseinfer.convert.scan import scan
        >>> (layer,) = scan(torch.nn.Linear(2, 2))
        >>> [side.ms for side in apart(Side(layer, "a", {}, ms) for ms in (1.0, 1.2, 5.0))]
        [5.0]
    """
    groups: dict[str, list[Side]] = {}
    for side in sides:
        groups.setdefault(side.key, []).append(side)
    return [
        side
        for group in groups.values()
        for side in group
        if side.ms > APART * min(own.ms for own in group)
    ]


def sums_up(parts_ms: Sequence[float], whole_ms: float) -> bool:
    """Whether layers that take `parts_ms` alone can be those of a model that takes `whole_ms`.

    Example:
        >>> sums_up([0.1, 0.05], 0.2), sums_up([12.0, 0.05], 0.2)
        (True, False)
    """
    return sum(parts_ms) <= APART * whole_ms
