"""Which packed formats are worth a trial for a layer, by device and by where its zeros are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparseinfer.convert.scan import Layer
from sparseinfer.formats.format import PrunedWeight
from sparseinfer.formats.table import TABLE, format_named
from sparseinfer.layers.kinds import kind_named

__all__ = ["formats_for", "pack_params"]


def formats_for(layer: Layer, device: str) -> tuple[tuple[str, ...], str]:
    """Formats to try on a `device` of this type, and why there are none where that is so.

    On a GPU every one of them is timed; on the CPU the first that can store the weight.
    """
    if device == "cpu":
        return tuple(row.name for row in TABLE if row.on_cpu), ""
    weight = _pruned(layer)
    able = [row for row in TABLE if weight.op in row.gpu_ops]
    if found := tuple(row.name for row in able if row.suits(weight)):
        return found, ""
    if reasons := [said for row in TABLE if (said := row.stays_dense(weight))]:
        return (), reasons[0]
    zeros = f"its zeros are {layer.pattern or weight.kind}"
    gains = [row.gains_from for row in able]
    if weight.op == "conv":
        return (), f"{zeros}, and a GPU's convolution kernels skip {' or '.join(gains)}"
    *first, last = (f"from {gain}" for gain in gains)
    return (), (
        f"{zeros}, {1 - layer.density:.0%} of the weight: a GPU's kernels gain "
        f"{', '.join(first)}, or {last}"
    )


def pack_params(
    layer: Layer, format: str, fewest_tokens: int = 0, value_type: str = "float32"
) -> dict[str, Any]:
    """What `formats.pack` is told of the layer: its pattern, and the least N of its calls.

    `fewest_tokens` is 0 where that is not known. `value_type` is that of panel's values.
    """
    # The N of a call is that of the packed weight for linear layers alone.
    fewest = fewest_tokens if layer.kind == "linear" else None
    return format_named(format).params(
        replace(_pruned(layer), fewest_tokens=fewest, value_type=value_type)
    )


def _pruned(layer: Layer) -> PrunedWeight:
    return PrunedWeight(
        kind_named(layer.kind).op, layer.density, layer.pattern,
        layer.module._parameters.get("weight"),
    )  # fmt: skip
