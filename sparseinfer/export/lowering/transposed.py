"""Transposed convolutions as plain ones: each of their phases is a channel, then put in its place.

An output at s i + r reads the inputs i, i - 1, ... with the taps r, r + s, ... So one convolution
computes all s phases of it, which then stand side by side (Shi et al., "Is the deconvolution layer
the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from sparseinfer.export.graph import Value
from sparseinfer.export.lowering.table import Call, Refusal

__all__ = ["transposed_conv"]


def transposed_conv(
    call: Call, x: Value, weight: Value, bias: Value | None, given: dict[str, Any]
) -> Value:
    """A transposed convolution: `weight` `[in, out / groups, ...]`, its stride, padding, groups.

    What is cut off at the ends is `given["padding"]` before, and after it what `call.shape` leaves.
    """
    if given["dilation"] != [1, 1]:
        raise Refusal("it is transposed and dilated")
    flat = len(weight.shape) == 3
    assert weight.constant is not None
    steps, groups = given["stride"], given["groups"]
    sizes = (1, *weight.shape[2:])[-2:]
    if min(steps) < 1 or any(step > size for step, size in zip(steps, sizes, strict=True)):
        raise Refusal(f"it is transposed, and its steps {steps} are longer than its kernel")
    kernel = weight.constant.unsqueeze(2) if flat else weight.constant
    height = 1 if flat else x.shape[2]
    image, out = (x.shape[0], height, x.shape[-1]), call.shape[1]
    taps = [-(-size // step) for size, step in zip(kernel.shape[2:], steps, strict=True)]
    missing = [n * step - size
               for n, step, size in zip(taps, steps, kernel.shape[2:], strict=True)]  # fmt: skip
    grown = F.pad(kernel, (0, missing[1], 0, missing[0]))
    # [groups, in, out, taps, phases, taps, phases] to the rows of a plain convolution.
    parts = grown.reshape(groups, x.shape[1] // groups, out // groups, taps[0], steps[0],
                          taps[1], steps[1]).flip(3, 5)  # fmt: skip
    phases = steps[0] * steps[1]
    rows = parts.permute(0, 2, 4, 6, 1, 3, 5).reshape(out * phases, -1, *taps)
    plain = rows.squeeze(2) if flat else rows
    inputs: list[Value | None] = [
        x, Value(f"{weight.name} phases", tuple(plain.shape), plain.contiguous()), None,
    ]  # fmt: skip
    if bias is not None:
        assert bias.constant is not None
        each = bias.constant.repeat_interleave(phases)
        inputs[2] = Value(f"{bias.name} phases", tuple(each.shape), each)
    ends = [n - 1 for n in taps]
    blocks = [image[1] + ends[0], image[2] + ends[1]]
    found = call.step(
        "phases", (image[0], out * phases, *blocks[flat:]), "conv", inputs, stride=[1, 1],
        padding=[ends[0], ends[0], ends[1], ends[1]], dilation=[1, 1], groups=groups,
    )  # fmt: skip
    apart = call.step("apart", (image[0], out, *steps, *blocks), "reshape", [found])
    turned = call.step("turned", (image[0], out, blocks[0], steps[0], blocks[1], steps[1]),
                       "permute", [apart], axes=[0, 1, 4, 2, 5, 3])  # fmt: skip
    whole = [n * step for n, step in zip(blocks, steps, strict=True)]
    shape = (image[0], out, *(whole[1:] if flat else whole))
    y = call.step("whole", shape, "reshape", [turned])
    for axis in range(2, len(shape)):
        start = given["padding"][2 if flat or axis == 3 else 0]
        size = call.shape[axis]
        if start + size > shape[axis]:
            raise Refusal("it is transposed, and its output reaches beyond what its inputs give")
        if size != shape[axis]:
            shape = (*shape[:axis], size, *shape[axis + 1 :])
            y = call.step(f"cut {axis}", shape, "slice", [y], axis=axis, start=start, step=1)
    return y
