"""Nodes that go over the dimensions of tensors, as C: element-wise operations of tensors that are
broadcast, functions of elements, permutations, slices, reductions, norms and resizing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

from sparseinfer.export.c.emitted import Emitted, function_of, node_call, struct_text
from sparseinfer.export.c.records import NodeRecord, TensorRecord
from sparseinfer.export.c.weights import float_text

__all__ = ["BINARY", "DIMENSIONS", "UNARY"]

BINARY = {
    "add": "a + b", "subtract": "a - b", "multiply": "a * b", "divide": "a / b",
    "minimum": "a != a || a < b ? a : b", "maximum": "a != a || a > b ? a : b",
    "power": "powf(a, b)",
}  # fmt: skip
"""What `scalar_binary` of csrc/kernels/network/binary.cc computes."""

UNARY = {
    "hardswish": "x * act_hardsigmoid(x)", "hardsigmoid": "act_hardsigmoid(x)",
    "leaky_relu": "x > 0.0f ? x : {p} * x", "elu": "x > 0.0f ? x : {p} * expm1f(x)",
    "clamp": "x < {p} ? {p} : x > {q} ? {q} : x",
    "softplus": "{p} * x > {q} ? x : log1pf(expf({p} * x)) / {p}",
    "abs": "fabsf(x)", "exp": "expf(x)", "log": "logf(x)", "sqrt": "sqrtf(x)",
    "rsqrt": "1.0f / sqrtf(x)", "erf": "erff(x)", "sin": "sinf(x)", "cos": "cosf(x)",
    "floor": "floorf(x)", "ceil": "ceilf(x)", "round": "nearbyintf(x)",
}  # fmt: skip
"""What `scalar_unary` of csrc/kernels/network/unary.cc computes; p and q are its numbers."""

Tensors = Sequence[TensorRecord | None]
"""Of a node: its operands, and its output."""


def _steps(shape: Sequence[int]) -> list[int]:
    """Elements from one index to the next of each dimension."""
    return [math.prod(shape[at + 1 :]) for at in range(len(shape))]


def _numbers(values: Sequence[int]) -> str:
    return f"{{{', '.join(map(str, values)) or '0'}}}"


def _places(shape: Sequence[int], *steps: Sequence[int]) -> list[str]:
    """The fields of `struct places`: the dimensions that are not 1, and the steps along them."""
    kept = [at for at, size in enumerate(shape) if size != 1]
    return [_numbers([own[at] for at in kept]) for own in (shape, *steps)]


def _given(tensor: TensorRecord | None) -> TensorRecord:
    assert tensor is not None, "a node that was checked has this tensor"
    return tensor


def _float_of(bits: int) -> float:
    (value,) = struct.unpack("<f", struct.pack("<i", bits))
    return float(value)


def _binary(node: NodeRecord, tensors: Tensors, pointers: Sequence[str], name: str) -> Emitted:
    a, b, y = map(_given, tensors)
    ndim = len(y.shape)

    def broadcast(x: TensorRecord) -> list[int]:
        own = [
            0 if size == 1 else step for size, step in zip(x.shape, _steps(x.shape), strict=True)
        ]
        return [0] * (ndim - len(own)) + own

    dims, a_step, b_step = _places(y.shape, broadcast(a), broadcast(b))
    function, pieces = function_of(node.activation)
    fields = {
        "count": y.elements, "ndim": sum(size != 1 for size in y.shape), "dims": dims,
        "a_step": a_step, "b_step": b_step, "function": f"{name}_of", "activation": function,
    }  # fmt: skip
    emitted = node_call("binary", name, fields, ", ".join(pointers), pieces)
    own = f"static float {name}_of(float a, float b) {{ return {BINARY[node.kind]}; }}"
    emitted.constant = f"{own}\n{emitted.constant}"
    return emitted


def _unary(node: NodeRecord, tensors: Tensors, pointers: Sequence[str], name: str) -> Emitted:
    p, q = map(float_text, map(_float_of, node.params[1:3]))
    text = UNARY[node.kind].format(p=p, q=q)
    pieces = ["activation.h", "functions.h"]
    if "act_hardsigmoid" in text:
        pieces.append("activations/hardsigmoid.h")
    return Emitted(
        f"activate({', '.join(pointers)}, {_given(tensors[-1]).elements}, {name});", pieces,
        f"static float {name}(float x) {{ return {text}; }}",
    )  # fmt: skip


def _permute(node: NodeRecord, tensors: Tensors, pointers: Sequence[str], name: str) -> Emitted:
    x, y = map(_given, tensors)
    steps = _steps(x.shape)
    dims, step = _places(y.shape, [steps[node.params[at]] for at in range(len(x.shape))])
    fields = {
        "count": y.elements, "ndim": sum(size != 1 for size in y.shape), "dims": dims, "step": step,
    }  # fmt: skip
    return node_call("permute", name, fields, ", ".join(pointers), [])


def _slice(node: NodeRecord, tensors: Tensors, pointers: Sequence[str], name: str) -> Emitted:
    x, y = map(_given, tensors)
    axis, first, step = node.params[:3]
    each = x.size // x.elements * math.prod(x.shape[axis + 1 :])
    pieces, piece = (1, y.shape[axis] * each) if step == 1 else (y.shape[axis], each)
    sizes = (
        math.prod(x.shape[:axis]), pieces, piece, x.shape[axis] * each, first * each, step * each,
    )  # fmt: skip
    return Emitted(
        f"slice({', '.join(pointers)}, {', '.join(map(str, sizes))});", ["slice.h"]
    )  # fmt: skip


def _reduce(node: NodeRecord, tensors: Tensors, pointers: Sequence[str], name: str) -> Emitted:
    x = _given(tensors[0])
    steps = _steps(x.shape)
    gone = [at for at in range(len(x.shape)) if node.params[1] >> at & 1]
    stay = [at for at in range(len(x.shape)) if at not in gone]
    fields: dict[str, Any] = {}
    for word, axes in (("stay", stay), ("gone", gone)):
        shape = [x.shape[at] for at in axes]
        dims, step = _places(shape, [steps[at] for at in axes])
        fields |= {
            word: math.prod(shape), f"{word}_ndim": sum(size != 1 for size in shape),
            f"{word}_dims": dims, f"{word}_step": step,
        }  # fmt: skip
    joined = node.kind if node.kind in BINARY else "add"
    fields |= {"join": f"{name}_of", "is_mean": int(node.kind == "mean")}
    emitted = node_call("reduce", name, fields, ", ".join(pointers), [])
    own = f"static float {name}_of(float a, float b) {{ return {BINARY[joined]}; }}"
    emitted.constant = f"{own}\n{emitted.constant}"
    return emitted


def _layer_norm(node: NodeRecord, tensors: Tensors, pointers: Sequence[str], name: str) -> Emitted:
    x = _given(tensors[0])
    n = x.shape[-1]
    x_at, weight, bias, residual = [*pointers[:-1], "0", "0", "0"][:4]
    fields = {
        "weight": weight, "bias": bias, "rows": x.elements // n, "n": n,
        "eps": float_text(_float_of(node.params[0])), "centred": int(node.params[1] == 0),
    }  # fmt: skip
    return node_call("layer_norm", name, fields, f"{x_at}, {residual}, {pointers[-1]}", [])


def _resize(node: NodeRecord, tensors: Tensors, pointers: Sequence[str], name: str) -> Emitted:
    x, y = map(_given, tensors)
    half = node.kind in ("nearest_exact", "bilinear")
    is_nearest = node.kind.startswith("nearest")
    fields = {
        "planes": x.shape[0] * x.shape[1], "h": x.shape[2], "w": x.shape[3], "oh": y.shape[2],
        "ow": y.shape[3], "half": int(half), "back": int(node.kind == "bilinear"),
        "ratio": f"{{{', '.join(float_text(_float_of(bits)) for bits in node.params[3:5])}}}",
    }  # fmt: skip
    kind = ("resize_int8" if x.type == "uint8" else "resize_nearest") if is_nearest else "resize"
    return Emitted(
        f"{kind}(&{name}, {', '.join(pointers)});", [f"{kind}.h"],
        struct_text("resize_shape", name, fields),
    )  # fmt: skip


DIMENSIONS: dict[str, Callable[[NodeRecord, Tensors, Sequence[str], str], Emitted]] = {
    "binary": _binary, "unary": _unary, "permute": _permute, "slice": _slice, "reduce": _reduce,
    "layer_norm": _layer_norm, "resize": _resize,
}  # fmt: skip
"""By the name of the operator, what makes a node of it C."""
