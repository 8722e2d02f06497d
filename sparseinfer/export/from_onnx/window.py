"""What slides over images: paddings by their numbers or by a rule, as ONNX has them."""

from __future__ import annotations

from collections.abc import Sequence

from sparseinfer.export.from_onnx.table import Call, Refusal

__all__ = ["pads_of"]


def pads_of(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:  # fmt: skip
    """The padding before and after each axis in turn: top, bottom, left, right of an image."""
    axes = len(sizes)
    rule = call.attribute("auto_pad", "NOTSET")
    if rule == "VALID":
        return [0] * (2 * axes)
    if rule in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, width, step, reach in zip(sizes, kernel, stride, dilation, strict=True):
            total = max(0, (-(-size // step) - 1) * step + (width - 1) * reach + 1 - size)
            less = total // 2
            found += [less, total - less] if rule == "SAME_UPPER" else [total - less, less]
        return found
    given = list(call.attribute("pads", [0] * (2 * axes)))
    if rule != "NOTSET" or len(given) != 2 * axes or min(given) < 0:
        raise Refusal(f"its padding is {given} by the rule {rule}")
    return [end for axis in range(axes) for end in (given[axis], given[axes + axis])]
