"""Core ATen operators as nodes of the graph: one function an operator, in one table.

A function is given a `Call` and returns the value that the operator gives, after adding nodes; it
raises `Refusal` with the reason where the engine has no such operation. Values keep torch's own
layouts: images `[batch, channels, height, width]`, features last elsewhere. They are what the
kernels read, so that no layout changes inside a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparseinfer.export.graph import MOST_COLUMNS, Graph, Node, Value

__all__ = ["LOWERINGS", "Call", "Refusal"]

aten = torch.ops.aten


class Refusal(Exception):
    """Why an operator, as it is called, has no place in the graph."""


@dataclass
class Call:
    """One call of an operator: its arguments, tensors as values, and what it gives.

    Example:
        >>> Call(Graph([], [], []), "relu", "net.act", [Value("x", (2,))], {}, (2,)).name
        'relu'
    """

    graph: Graph
    name: str
    module: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]

    def value(self, index: int) -> Value:
        """An argument that has to be a tensor."""
        found = self.args[index]
        if not isinstance(found, Value):
            raise Refusal(f"expected a tensor as argument {index}")
        return found

    def constant(self, index: int) -> Value:
        """An argument that has to be a tensor which the model holds, such as a weight."""
        found = self.value(index)
        if found.constant is None:
            raise Refusal(f"expected a parameter or constant as argument {index}, got {found}")
        return found

    def argument(self, index: int, name: str, default: Any) -> Any:
        """An argument with a default, wherever it is given."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    def add(
        self, op: str, inputs: list[Value | None], activation: str = "none", **attributes: Any
    ) -> Value:
        """Add a node whose output is what the call gives."""
        output = Value(self.name, self.shape)
        self.graph.nodes.append(Node(op, self.module, inputs, output, attributes, activation))
        return output


Lowering = Callable[[Call], Value]

LOWERINGS: dict[Any, Lowering] = {}
"""THE table of operators that are taken, filled by `_lowers` below."""


def _lowers(*targets: Any) -> Callable[[Lowering], Lowering]:
    def enter(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(targets, function))
        return function

    return enter


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


@_lowers(aten.linear.default)
def _linear(call: Call) -> Value:
    bias = call.argument(2, "bias", None)
    if bias is not None and bias.constant is None:
        raise Refusal("its bias is computed")
    return call.add("linear", [call.value(0), call.constant(1), bias])


@_lowers(aten.addmm.default)
def _addmm(call: Call) -> Value:
    if call.argument(3, "beta", 1) != 1 or call.argument(4, "alpha", 1) != 1:
        raise Refusal("its beta or alpha is not 1")
    bias, weight = call.constant(0), call.constant(2)
    if bias.shape != call.shape[-1:]:
        raise Refusal(f"its bias is {list(bias.shape)}, one number a column is taken")
    return call.add("linear", [call.value(1), _transposed(weight), bias])


@_lowers(aten.mm.default)
def _mm(call: Call) -> Value:
    return call.add("linear", [call.value(0), _transposed(call.constant(1)), None])


def _transposed(weight: Value) -> Value:
    assert weight.constant is not None
    return Value(f"{weight.name}_t", weight.shape[::-1], weight.constant.t().contiguous())


@_lowers(aten.convolution.default)
def _convolution(call: Call) -> Value:
    x, weight = call.value(0), call.constant(1)
    bias, stride, padding, dilation, transposed, _, groups = call.args[2:9]
    if transposed:
        raise Refusal("it is a transposed convolution")
    if len(weight.shape) not in (3, 4) or len(x.shape) != len(weight.shape):
        raise Refusal(f"it has {len(weight.shape) - 2} dimensions, and a batch of 1-d and 2-d ones")
    if bias is not None and bias.constant is None:
        raise Refusal("its bias is computed")
    flat = len(weight.shape) == 3
    down, right = (0, padding[0]) if flat else padding
    return call.add(
        "conv", [x, weight, bias],
        stride=[1, stride[0]] if flat else list(stride), padding=[down, down, right, right],
        dilation=[1, dilation[0]] if flat else list(dilation), groups=groups,
    )  # fmt: skip


@_lowers(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(call: Call) -> Value:
    x, eps = call.value(0), call.args[6]
    scale, shift = call.args[1], call.args[2]
    for value in (scale, shift):
        if value is not None and value.constant is None:
            raise Refusal("its weight or bias is computed")
    return call.add(
        "batch_norm", [x, scale, shift, call.constant(3), call.constant(4)], eps=float(eps)
    )


@_lowers(aten.constant_pad_nd.default)
def _pad(call: Call) -> Value:
    x, ends, fill = call.value(0), list(call.args[1]), call.argument(2, "value", 0)
    if not any(ends):
        return x
    ends += [0] * (4 - len(ends))
    if len(x.shape) not in (3, 4) or any(ends[4:]) or (len(x.shape) == 3 and any(ends[2:])):
        raise Refusal("it pads other axes than those of an image")
    return call.add("pad", [x], padding=[ends[2], ends[3], ends[0], ends[1]], fill=float(fill))


def _activation(kind: str) -> Lowering:
    return lambda call: call.add("activation", [call.value(0)], kind)


for _target, _kind in {
    aten.relu.default: "relu", aten.relu_.default: "relu", aten.relu6.default: "relu6",
    aten.silu.default: "silu", aten.sigmoid.default: "sigmoid", aten.tanh.default: "tanh",
}.items():  # fmt: skip
    LOWERINGS[_target] = _activation(_kind)


@_lowers(aten.gelu.default)
def _gelu(call: Call) -> Value:
    kind = "gelu" if call.argument(1, "approximate", "none") == "none" else "gelu_tanh"
    return call.add("activation", [call.value(0)], kind)


@_lowers(aten.hardtanh.default, aten.clamp.default)
def _clamp(call: Call) -> Value:
    is_clamp = "clamp" in call.name
    low = call.argument(1, "min" if is_clamp else "min_val", None if is_clamp else -1.0)
    high = call.argument(2, "max" if is_clamp else "max_val", None if is_clamp else 1.0)
    if low == 0 and high in (None, math.inf):
        return call.add("activation", [call.value(0)], "relu")
    if low == 0 and high == 6:
        return call.add("activation", [call.value(0)], "relu6")
    raise Refusal(f"it clamps to [{low}, {high}]: [0, 6] and [0, inf] are taken")


@_lowers(aten.add.Tensor)
def _add(call: Call) -> Value:
    a, b = call.args[0], call.args[1]
    if call.kwargs.get("alpha", 1) != 1:
        raise Refusal("its alpha is not 1")
    if not isinstance(a, Value) or not isinstance(b, Value) or a.shape != b.shape:
        raise Refusal("it adds tensors of different shapes, or a number")
    return call.add("add", [a, b])


@_lowers(aten.max_pool2d_with_indices.default)
def _max_pool(call: Call) -> Value:
    kernel, stride, padding, ceil = _window(call)
    if _pair(call.argument(4, "dilation", 1)) != [1, 1]:
        raise Refusal("it is dilated")
    return call.add("max_pool", [call.value(0)], **_pooled(call, kernel, stride, padding, ceil))


@_lowers(aten.avg_pool2d.default)
def _average_pool(call: Call) -> Value:
    kernel, stride, padding, ceil = _window(call)
    counts = bool(call.argument(5, "count_include_pad", True))
    if call.argument(6, "divisor_override", None) is not None:
        raise Refusal("it has a divisor of its own")
    pooled = _pooled(call, kernel, stride, padding, ceil)
    if counts and pooled["padding"] != [padding[0], padding[0], padding[1], padding[1]]:
        raise Refusal("its last windows, by ceil_mode, reach beyond the padding that it counts")
    return call.add("average_pool", [call.value(0)], **pooled, count_padding=counts)


def _window(call: Call) -> tuple[list[int], list[int], list[int], bool]:
    kernel = _pair(call.args[1])
    stride = _pair(call.argument(2, "stride", None) or kernel)
    padding = _pair(call.argument(3, "padding", 0))
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


@_lowers(aten._adaptive_avg_pool2d.default)
def _adaptive_average_pool(call: Call) -> Value:
    x = call.value(0)
    size = _pair(call.args[1])
    if len(x.shape) != 4 or any(have % want for have, want in zip(x.shape[2:], size, strict=True)):
        raise Refusal(f"{list(x.shape[2:])} is not cut evenly in {size}")
    kernel = [have // want for have, want in zip(x.shape[2:], size, strict=True)]
    if size == [1, 1]:
        return call.add("global_average_pool", [x])
    if max(x.shape[2:]) > MOST_COLUMNS:
        raise Refusal(f"images of at most {MOST_COLUMNS} rows and columns are taken")
    return call.add(
        "average_pool", [x], kernel=kernel, stride=kernel, padding=[0] * 4, count_padding=False
    )


@_lowers(aten.mean.dim)
def _mean(call: Call) -> Value:
    x, dims = call.value(0), sorted(dim % len(call.value(0).shape) for dim in call.args[1] or ())
    if len(x.shape) != 4 or dims != [2, 3]:
        raise Refusal("a mean over height and width of images is taken, and no other")
    return call.add("global_average_pool", [x])


@_lowers(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.squeeze.dims,
    aten.squeeze.dim, aten.unsqueeze.default, aten.flatten.using_ints,
)  # fmt: skip
def _reshape(call: Call) -> Value:
    return call.add("reshape", [call.value(0)])


@_lowers(aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default)
def _same(call: Call) -> Value:
    return call.value(0)


@_lowers(aten._softmax.default)
def _softmax(call: Call) -> Value:
    x = call.value(0)
    return call.add("softmax", [x], axis=call.args[1] % len(x.shape))


@_lowers(aten.cat.default)
def _cat(call: Call) -> Value:
    values = list(call.args[0])
    axis = call.argument(1, "dim", 0) % len(call.shape)
    if not all(isinstance(value, Value) for value in values):
        raise Refusal("it joins other things than tensors")
    return call.add("concat", values, axis=axis)
