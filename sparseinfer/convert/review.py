"""Holds the timings of a conversion's layers against each other and against the whole model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from torch import nn

from sparseinfer.convert.decide import Decider
from sparseinfer.convert.layer_report import LayerReport
from sparseinfer.convert.plausible import apart, sums_up
from sparseinfer.convert.scan import Layer

__all__ = ["review"]

_log = logging.getLogger(__name__)


def review(
    decider: Decider,
    decisions: Mapping[nn.Module, LayerReport],
    dense_ms: float,
    again: Callable[[Layer], None],
) -> None:
    """Have `again` decide anew the layers whose timings do not fit, and doubt those that never do.

    Equal layers take equally long dense, and layers no longer than the model that they are part of,
    which takes `dense_ms` dense. The longest go first, while there is time.
    """
    for side in apart(decider.sides):
        _once_more(decider, side.layer, again)
    timed = {
        side.layer.module: side.layer
        for side in decider.sides
        if decisions[side.layer.module].dense_ms
    }

    def parts() -> list[float]:
        return [decisions[module].dense_ms or 0.0 for module in timed]

    for module in sorted(timed, key=lambda module: -(decisions[module].dense_ms or 0.0)):
        if sums_up(parts(), dense_ms):
            break
        _once_more(decider, timed[module], again)
    for side in apart(decider.sides):
        decider.tuner.doubt(side.problem, "an equal layer took much less time")
    if not sums_up(parts(), dense_ms):
        for side in decider.sides:
            why = f"the layers take {sum(parts()):.3g} ms alone, and the model {dense_ms:.3g} ms"
            decider.tuner.doubt(side.problem, why)


def _once_more(decider: Decider, layer: Layer, again: Callable[[Layer], None]) -> None:
    if decider.left_s <= 0:
        return
    _log.debug("%s is timed again", layer.name)
    for side in [side for side in decider.sides if side.layer is layer]:
        decider.tuner.forget(side.problem)
        decider.sides.remove(side)
    again(layer)
