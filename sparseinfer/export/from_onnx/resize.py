"""Images of another height and width, and channels that become pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from sparseinfer.export.from_onnx.table import Call, Refusal, converts
from sparseinfer.export.graph import Value

__all__: list[str] = []

aten = torch.ops.aten

ROUND: dict[str, Callable[[float], int]] = {
    "floor": math.floor, "ceil": math.ceil,
    "round_prefer_floor": lambda at: math.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: math.floor(at + 0.5),
}  # fmt: skip

MOST_PIXELS = 2**16
"""Of a row or a column whose places are compared."""


@converts("Resize")
def _resize(call: Call) -> Value:
    x, mode = call.value(0), call.attribute("mode", "nearest")
    where = call.attribute("coordinate_transformation_mode", "half_pixel")
    if len(x.shape) != 4 or call.shape[:2] != x.shape[:2] or max(call.shape[2:]) > MOST_PIXELS:
        raise Refusal(f"it makes {list(call.shape)} of {list(x.shape)}: images are resized")
    if call.attribute("antialias", 0) or call.attribute("axes", [2, 3])[-2:] != [2, 3]:
        raise Refusal("it is antialiased, or of other axes than those of an image")
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal("it keeps the aspect ratio")
    scales = (call.numbers(2) or [])[-2:]
    pairs = list(zip(x.shape[2:], call.shape[2:], strict=True))
    if not scales or call.numbers(3):
        scales = [want / have for have, want in pairs]
    if mode == "nearest":
        return _nearest(call, x, where, pairs, scales)
    if mode != "linear" or where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise Refusal(f"it is {mode} by the rule {where}")
    aligned = where == "align_corners"
    if where == "pytorch_half_pixel" and any(want == 1 < have for have, want in pairs):
        raise Refusal(f"it makes one pixel of several by the rule {where}")
    size, factors = _size(call, pairs, scales)
    if aligned:
        size, factors = list(call.shape[2:]), None
    return call.aten(aten.upsample_bilinear2d.vec, x, size, aligned, factors)


def _nearest(
    call: Call, x: Value, where: str, pairs: list[tuple[int, int]], scales: list[float]
) -> Any:
    """By whichever of torch's rules takes the same pixels."""
    rounded = ROUND.get(call.attribute("nearest_mode", "round_prefer_floor"))
    if rounded is None or where not in ("half_pixel", "asymmetric", "pytorch_half_pixel"):
        raise Refusal(f"it takes the nearest pixel by the rule {where}")
    half = 0.0 if where == "asymmetric" else 0.5
    targets = {0.0: aten.upsample_nearest2d.vec, 0.5: aten._upsample_nearest_exact2d.vec}
    for shift, target in targets.items():
        if all(
            min(max(rounded((at + half) / scale - half), 0), have - 1)
            == min(math.floor((at + shift) / scale), have - 1)
            for (have, want), scale in zip(pairs, scales, strict=True)
            for at in range(want)
        ):
            return call.aten(target, x, *_size(call, pairs, scales))
    raise Refusal(f"it takes the nearest pixel by the rule {where}, rounded otherwise than torch")


def _size(
    call: Call, pairs: list[tuple[int, int]], scales: list[float]
) -> tuple[list[int] | None, list[float] | None]:
    """What torch is told: a size, or the factors where they are other than those of the size."""
    if all(want == have * scale for (have, want), scale in zip(pairs, scales, strict=True)):
        return list(call.shape[2:]), None
    return None, scales


@converts("DepthToSpace")
def _depth_to_space(call: Call) -> Any:
    x, step = call.value(0), int(call.attribute("blocksize", 1))
    batch, channels, height, width = x.shape
    left = channels // (step * step)
    columns = call.attribute("mode", "DCR") == "DCR"
    apart = [batch, *((step, step, left) if columns else (left, step, step)), height, width]
    order = [0, 3, 4, 1, 5, 2] if columns else [0, 1, 4, 2, 5, 3]
    turned = call.aten(aten.permute.default, call.aten(aten.view.default, x, apart), order)
    return call.aten(aten.view.default, turned, list(call.shape))


@converts("SpaceToDepth")
def _space_to_depth(call: Call) -> Any:
    x, step = call.value(0), int(call.attribute("blocksize", 1))
    batch, channels, height, width = x.shape
    apart = [batch, channels, height // step, step, width // step, step]
    turned = call.aten(aten.permute.default, call.aten(aten.view.default, x, apart),
                       [0, 3, 5, 1, 2, 4])  # fmt: skip
    return call.aten(aten.view.default, turned, list(call.shape))
