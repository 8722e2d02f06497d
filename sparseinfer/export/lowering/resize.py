"""Images of another height and width."""

from __future__ import annotations

from typing import Any

import torch

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import Call, Refusal, lowers

aten = torch.ops.aten


@lowers(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
def _nearest(call: Call) -> Value:
    return _resize(call, "nearest", _scales(call, 2))


@lowers(aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact2d.default)
def _nearest_exact(call: Call) -> Value:
    return _resize(call, "nearest_exact", _scales(call, 2))


@lowers(aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default)
def _bilinear(call: Call) -> Value:
    aligned = bool(call.args[2])
    return _resize(call, "bilinear_aligned" if aligned else "bilinear", _scales(call, 3))


def _scales(call: Call, first: int) -> list[float | None]:
    """The factors of a call, where they are given instead of a size, or beside it."""
    vector = call.argument(first, "scale_factors", None)
    if isinstance(vector, list | tuple):
        return list(vector)
    return [vector or call.kwargs.get("scales_h"), call.argument(first + 1, "scales_w", None)]


def _resize(call: Call, kind: str, scales: list[Any]) -> Value:
    x, size = call.value(0), call.shape[2:]
    if len(x.shape) != 4:
        raise Refusal("it resizes other tensors than a batch of images")
    ratio = []
    for have, want, scale in zip(x.shape[2:], size, scales, strict=True):
        if kind == "bilinear_aligned":
            ratio.append((have - 1) / (want - 1) if want > 1 else 0.0)
        else:
            ratio.append(1 / scale if scale else have / want)
    return call.add("resize", [x], kind=kind, size=list(size), ratio=ratio)
