"""Pooling."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparseinfer.export.graph import MOST_COLUMNS, Value
from sparseinfer.export.lowering.table import Call, Refusal, lowers, pair

aten = torch.ops.aten

MOST_UNEVEN = 2**24
"""Elements of a weight that pools unevenly."""


@lowers(aten.max_pool2d_with_indices.default)
def _max_pool(call: Call) -> Value:
    kernel, stride, padding, ceil = _window(call)
    if pair(call.argument(4, "dilation", 1)) != [1, 1]:
        raise Refusal("it is dilated")
    return call.add("max_pool", [call.value(0)], **_pooled(call, kernel, stride, padding, ceil))


@lowers(aten.avg_pool2d.default)
def _average_pool(call: Call) -> Value:
    kernel, stride, padding, ceil = _window(call)
    counts = bool(call.argument(5, "count_include_pad", True))
    if call.argument(6, "divisor_override", None) is not None:
        raise Refusal("it has a divisor of its own")
    if not any(padding):
        if len(call.shape) == 4 and all(
            k >= n for k, n in zip(kernel, call.value(0).shape[2:], strict=True)
        ):
            return call.add("global_average_pool", [call.value(0)])
        # What ceil_mode adds at the end is no padding to torch, which leaves it out of the mean.
        counts = False
    pooled = _pooled(call, kernel, stride, padding, ceil)
    if counts and pooled["padding"] != [padding[0], padding[0], padding[1], padding[1]]:
        raise Refusal("its last windows, by ceil_mode, reach beyond the padding that it counts")
    return call.add("average_pool", [call.value(0)], **pooled, count_padding=counts)


def _window(call: Call) -> tuple[list[int], list[int], list[int], bool]:
    kernel = pair(call.args[1])
    stride = pair(call.argument(2, "stride", None) or kernel)
    padding = pair(call.argument(3, "padding", 0))
    is_max = "max" in call.name
    return kernel, stride, padding, bool(call.argument(5 if is_max else 4, "ceil_mode", False))


def _pooled(
    call: Call, kernel: list[int], stride: list[int], padding: list[int], ceil: bool
) -> dict[str, Any]:
    """Attributes of a pooling; what ceil_mode adds is padding at the end."""
    shape = call.value(0).shape
    if len(shape) != 4:
        raise Refusal("it pools other tensors than a batch of images")
    if max(shape[2:]) > MOST_COLUMNS:
        raise Refusal(f"images of at most {MOST_COLUMNS} rows and columns are taken")
    ends = []
    for axis in range(2):
        after = padding[axis]
        if ceil:
            covered = (call.shape[2 + axis] - 1) * stride[axis] + kernel[axis]
            after = max(0, covered - shape[2 + axis] - padding[axis])
        ends += [padding[axis], after]
    return {"kernel": kernel, "stride": stride, "padding": ends}


@lowers(aten._adaptive_avg_pool2d.default)
def _adaptive_average_pool(call: Call) -> Value:
    x = call.value(0)
    size = pair(call.args[1])
    if len(x.shape) != 4:
        raise Refusal("it pools other tensors than a batch of images")
    if any(have % want for have, want in zip(x.shape[2:], size, strict=True)):
        return _uneven_average_pool(call, x, size)
    kernel = [have // want for have, want in zip(x.shape[2:], size, strict=True)]
    if size == [1, 1]:
        return call.add("global_average_pool", [x])
    if max(x.shape[2:]) > MOST_COLUMNS:
        raise Refusal(f"images of at most {MOST_COLUMNS} rows and columns are taken")
    return call.add(
        "average_pool", [x], kernel=kernel, stride=kernel, padding=[0] * 4, count_padding=False
    )


@lowers(aten.adaptive_avg_pool1d.default)
def _adaptive_average_pool_of_lines(call: Call) -> Value:
    x, (size,) = call.value(0), call.args[1]
    length = x.shape[-1]
    if size == 1:
        return call.add("reduce", [x], kind="mean", axes=[len(x.shape) - 1], keepdim=True)
    if len(x.shape) != 3 or length % size or length > MOST_COLUMNS:
        raise Refusal(f"{length} is not cut evenly in {size} in a batch of lines")
    image = call.step("image", (*x.shape[:2], 1, length), "reshape", [x])
    window = [1, length // size]
    pooled = call.step("pooled", (*x.shape[:2], 1, size), "average_pool", [image], kernel=window,
                       stride=window, padding=[0] * 4, count_padding=False)  # fmt: skip
    return call.add("reshape", [pooled])


def _uneven_average_pool(call: Call, x: Value, size: list[int]) -> Value:
    """Windows of different sizes: a linear layer over pixels, which is zero outside of each."""
    images, pixels, cells = x.shape[:2], math.prod(x.shape[2:]), math.prod(size)
    if pixels * cells > MOST_UNEVEN:
        raise Refusal(f"{list(x.shape[2:])} is not cut evenly in {size}, and is too large")
    rows, columns = (_shares(have, want) for have, want in zip(x.shape[2:], size, strict=True))
    shares = torch.einsum("ah,bw->abhw", rows, columns).reshape(cells, pixels)
    weight = Value(f"{call.name} shares", (cells, pixels), shares)
    flat = call.step("pixels", (*images, pixels), "reshape", [x])
    cut = call.step("cells", (*images, cells), "linear", [flat, weight, None])
    return call.add("reshape", [cut])


def _shares(have: int, want: int) -> torch.Tensor:
    """What each of `have` entries adds to the mean of each of `want` windows."""
    shares = torch.zeros(want, have, device="cpu")
    for i in range(want):
        first, last = i * have // want, -(-(i + 1) * have // want)
        shares[i, first:last] = 1 / (last - first)
    return shares
