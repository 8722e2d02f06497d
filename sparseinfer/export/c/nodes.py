"""Nodes as C: of each the constant that describes it, the call, and the pieces of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparseinfer.export.c.arena import ALIGN
from sparseinfer.export.c.dimensions import DIMENSIONS
from sparseinfer.export.c.emitted import Emitted, function_of, node_call, struct_text
from sparseinfer.export.c.records import NodeRecord, Packed, Records, TensorRecord
from sparseinfer.export.c.weights import Block, float_text, weight_fields

__all__ = ["Emitter"]

CLAMPS = {"none": (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}
"""Activations that bytes are clamped by as they are made."""


@dataclass
class Emitter:
    """Writes the nodes of a model.

    `pointers` are the expressions for its tensors, of packed weights none; constants go to `block`.
    """

    records: Records
    packed: Mapping[int, Packed]
    block: Block
    pointers: Callable[[int], str]
    scratch: str
    _ops: dict[str, Callable[[NodeRecord, str], Emitted]] = field(init=False)

    def __post_init__(self) -> None:
        self._ops = {
            "linear": self._linear, "conv": self._conv, "depthwise_conv": self._depthwise,
            "add": self._add, "activation": self._activation, "max_pool": self._max_pool,
            "average_pool": self._average_pool, "global_average_pool": self._global_average_pool,
            "reshape": self._reshape, "softmax": self._softmax, "concat": self._concat,
            "quantize": self._quantize, "dequantize": self._dequantize, "lookup": self._lookup,
        }  # fmt: skip

    def emit(self, node: NodeRecord, name: str) -> Emitted:
        """A node; `name` is that of its constant."""
        if node.op in self._ops:
            return self._ops[node.op](node, name)
        numbers = (*node.operands, node.output)
        tensors = [None if number is None else self.records.tensors[number] for number in numbers]
        pointers = ["0" if number is None else self.pointers(number) for number in numbers]
        return DIMENSIONS[node.op](node, tensors, pointers, name)

    def _tensor(self, node: NodeRecord, which: int) -> TensorRecord:
        number = node.operands[which]
        assert number is not None, f"{node.op} has no operand {which}"
        return self.records.tensors[number]

    def _x(self, node: NodeRecord, which: int = 0) -> str:
        number = node.operand(which)
        return "0" if number is None else self.pointers(number)

    def _y(self, node: NodeRecord) -> tuple[TensorRecord, str]:
        return self.records.tensors[node.output], self.pointers(node.output)

    def _ordered(self, node: NodeRecord, which: int, packed: Packed) -> bytes:
        """A constant of output rows, by position."""
        number = node.operand(which)
        if number is None:
            return b""
        rows = np.frombuffer(self.records.tensors[number].data, np.float32)
        order = np.frombuffer(packed.sections["order"], np.uint32)
        return (rows[order] if len(order) else rows).tobytes()

    def _weight(self, node: NodeRecord) -> Packed:
        number = node.operands[1]
        assert number is not None, f"{node.op} has no weight"
        return self.packed[number]

    def _linear(self, node: NodeRecord, name: str) -> Emitted:
        packed, x, to = self._weight(node), self._tensor(node, 0), self._y(node)[1]
        if packed.in_rows:
            return self._linear_csr(node, name)
        fields: dict[str, Any] = {
            "weight": weight_fields(packed, self.block),
            "tokens": x.elements // packed.columns,
            "inputs": packed.columns, "outputs": packed.rows,
        }  # fmt: skip
        if packed.value_type == "int8":
            start = -x.zero_point * np.frombuffer(packed.sections["row_sum"], np.int32)
            fields["start"] = self.block.put(start.astype(np.int32).tobytes(), "int32_t")
            return self._int8("linear_int8", node, name, fields, f"{self._x(node)}, {to}")
        return self._float("linear", node, name, fields, f"{self._x(node)}, {to}")

    def _linear_csr(self, node: NodeRecord, name: str) -> Emitted:
        packed, x, to = self._weight(node), self._tensor(node, 0), self._y(node)[1]
        fields: dict[str, Any] = {
            "start": self.block.put(packed.sections["start"], "uint32_t"),
            "column": self.block.put(packed.sections["column"], "uint32_t"),
            "value": self.block.put(packed.sections["value"], "float"),
            "tokens": x.elements // packed.columns,
            "inputs": packed.columns, "outputs": packed.rows,
        }  # fmt: skip
        return self._float("linear_csr", node, name, fields, f"{self._x(node)}, {to}")

    def _conv(self, node: NodeRecord, name: str) -> Emitted:
        packed, x, (y, to) = self._weight(node), self._tensor(node, 0), self._y(node)
        flat = len(x.shape) == 3  # a signal: an image of one row
        stride, padding, dilation = node.params[0:2], node.params[2:6], node.params[6:8]
        fields: dict[str, Any] = {
            "weight": weight_fields(packed, self.block),
            "shape": {
                "batch": x.shape[0], "channels": x.shape[1],
                "h": 1 if flat else x.shape[2], "w": x.shape[-1],
                "out_channels": packed.rows, "oh": 1 if flat else y.shape[2], "ow": y.shape[-1],
                "group_channels": packed.shape[1],
                "kh": 1 if flat else packed.shape[2], "kw": packed.shape[-1],
                "stride": _pair(stride), "padding": _pair(padding[::2]),
                "dilation": _pair(dilation),
            },
        }  # fmt: skip
        sums, from_x = 16 * y.shape[-1], self._x(node)
        padded = node.params[8] != 0
        if padded:
            # The image with its padding, beside the sums.
            from_x = f"({'uint8_t' if x.type == 'uint8' else 'float'}*)"
            from_x += f"((uint8_t*){self.scratch} + {sums})"
            fields["shape"] |= _around(fields["shape"], padding)
        given = f"{from_x}, {self._x(node, 3)}, {to}, {self.scratch}"
        if packed.value_type == "int8":
            fields["x_zero_point"] = x.zero_point
            emitted = self._int8("conv_int8", node, name, fields, given)
        else:
            emitted = self._float("conv", node, name, fields, given)
        emitted.scratch = sums
        if padded:
            pad, emitted.scratch = _pad(node, x, f"{name}_padding", self._x(node), from_x, sums)
            emitted.call = f"{pad.call}\n  {emitted.call}"
            emitted.constant = f"{pad.constant}\n{emitted.constant}"
            emitted.pieces = [*pad.pieces, *emitted.pieces]
        return emitted

    def _float(
        self, kind: str, node: NodeRecord, name: str, fields: dict[str, Any], given: str
    ) -> Emitted:
        bias = self._ordered(node, 2, self._weight(node))
        function, pieces = function_of(node.activation)
        fields |= {"bias": self.block.put(bias, "float"), "activation": function}
        return node_call(kind, name, fields, given, pieces)

    def _int8(
        self, kind: str, node: NodeRecord, name: str, fields: dict[str, Any], given: str
    ) -> Emitted:
        packed, x, (y, _) = self._weight(node), self._tensor(node, 0), self._y(node)
        scale = np.frombuffer(packed.sections["scale"], np.float32) * np.float32(x.scale)
        is_float = y.type == "float32"
        clamped = not is_float and node.activation in CLAMPS
        function, pieces = ("0", []) if clamped else function_of(node.activation)
        result: dict[str, Any] = {
            "scale": self.block.put(scale.tobytes(), "float"),
            "bias": self.block.put(self._ordered(node, 2, packed), "float"),
            "activation": function, "is_float": int(is_float),
        }  # fmt: skip
        if not is_float:
            result["to"] = _to_byte(y, node.activation)
        if node.operand(3) is not None:
            residual = self._tensor(node, 3)
            result["residual_scale"] = float_text(residual.scale)
            result["residual_zero_point"] = residual.zero_point
        return node_call(kind, name, {**fields, "result": result}, given, pieces)

    def _depthwise(self, node: NodeRecord, name: str) -> Emitted:
        x, weight, (y, to) = self._tensor(node, 0), self._tensor(node, 1), self._y(node)
        kernel, stride, padding = weight.shape[2:], node.params[:2], node.params[2:6:2]
        bias = b"" if node.operand(2) is None else self._tensor(node, 2).data
        fields: dict[str, Any] = {
            "window": _window(x, y, kernel, stride, padding), "channels": x.shape[1],
            "bias": self.block.put(bias, "float"),
        }  # fmt: skip
        given = f"{self._x(node)}, {to}"
        if x.type != "uint8":
            function, pieces = function_of(node.activation)
            fields["weight"] = self.block.put(weight.data, "float")
            fields["activation"] = function
            return node_call("depthwise", name, fields, given, pieces)
        scales = np.frombuffer(self._tensor(node, 3).data, np.float32) * np.float32(x.scale)
        fields |= {
            "weight": self.block.put(weight.data, "int8_t"), "x_zero_point": x.zero_point,
            "scale": self.block.put(scales.tobytes(), "float"), "to": _to_byte(y, node.activation),
        }  # fmt: skip
        return node_call("depthwise_int8", name, fields, given, [])

    def _add(self, node: NodeRecord, name: str) -> Emitted:
        a, b, (y, to) = self._tensor(node, 0), self._tensor(node, 1), self._y(node)
        given = f"{self._x(node)}, {self._x(node, 1)}, {to}"
        if y.type != "uint8":
            function, pieces = function_of(node.activation)
            return Emitted(f"add({given}, {y.elements}, {function});", ["add.h", *pieces])
        fields = {
            "count": y.elements, "a_zero_point": a.zero_point, "b_zero_point": b.zero_point,
            "a_scale": float_text(a.scale), "b_scale": float_text(b.scale),
            "to": _to_byte(y, node.activation),
        }  # fmt: skip
        return node_call("add_int8", name, fields, given, [])

    def _activation(self, node: NodeRecord, name: str) -> Emitted:
        y, to = self._y(node)
        function, pieces = function_of(node.activation)
        call = f"activate({self._x(node)}, {to}, {y.elements}, {function});"
        return Emitted(call, ["activation.h", *pieces])

    def _max_pool(self, node: NodeRecord, name: str) -> Emitted:
        x, (y, to) = self._tensor(node, 0), self._y(node)
        kind = "max_pool_int8" if y.type == "uint8" else "max_pool"
        window = _window(x, y, node.params[:2], node.params[2:4], node.params[4:8:2])
        return Emitted(
            f"{kind}(&{name}, {self._x(node)}, {to});", [f"{kind}.h"],
            struct_text("window", name, window),
        )  # fmt: skip

    def _average_pool(self, node: NodeRecord, name: str) -> Emitted:
        x, (y, to) = self._tensor(node, 0), self._y(node)
        window = _window(x, y, node.params[:2], node.params[2:4], node.params[4:8:2])
        fields: dict[str, Any] = {"window": window, "count_padding": node.params[8]}
        if y.type == "uint8":
            fields |= {
                "x_zero_point": x.zero_point, "x_scale": float_text(x.scale),
                "to": _to_byte(y, "none"),
            }  # fmt: skip
        kind = "average_pool_int8" if y.type == "uint8" else "average_pool"
        return node_call(kind, name, fields, f"{self._x(node)}, {to}", [])

    def _global_average_pool(self, node: NodeRecord, name: str) -> Emitted:
        x, (y, to) = self._tensor(node, 0), self._y(node)
        planes, pixels = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        given = f"{self._x(node)}, {to}"
        if x.type != "uint8":
            call = f"global_average_pool({given}, {planes}, {pixels});"
            return Emitted(call, ["global_average_pool.h"])
        fields = {
            "planes": planes, "pixels": pixels, "x_zero_point": x.zero_point,
            "scale": float_text(np.float32(x.scale) / np.float32(pixels)),
            "to": _to_byte(y, "none"),
        }  # fmt: skip
        return node_call("global_average_pool_int8", name, fields, given, [])

    def _reshape(self, node: NodeRecord, name: str) -> Emitted:
        y, to = self._y(node)
        return Emitted(f"copy_rows({self._x(node)}, {to}, 1, {y.size}, 0);", ["copy_rows.h"])

    def _softmax(self, node: NodeRecord, name: str) -> Emitted:
        y, to = self._y(node)
        axis = node.params[0]
        outer, inner = math.prod(y.shape[:axis]), math.prod(y.shape[axis + 1 :])
        call = f"softmax({self._x(node)}, {to}, {outer}, {y.shape[axis]}, {inner});"
        return Emitted(call, ["softmax.h"])

    def _concat(self, node: NodeRecord, name: str) -> Emitted:
        y, to = self._y(node)
        axis = node.params[0]
        outer, inner = math.prod(y.shape[:axis]), math.prod(y.shape[axis + 1 :])
        each = 1 if y.type == "uint8" else 4
        row, at, calls = each * y.shape[axis] * inner, 0, []
        for which in range(len(node.operands)):
            count = self._tensor(node, which).shape[axis] * inner
            calls.append(
                f"copy_rows({self._x(node, which)}, {to} + {at}, {outer}, {each * count}, {row});"
            )
            at += count
        return Emitted("\n  ".join(calls), ["copy_rows.h"])

    def _quantize(self, node: NodeRecord, name: str) -> Emitted:
        y, to = self._y(node)
        return Emitted(
            f"quantize(&{name}, {self._x(node)}, {to}, {y.elements});", ["quantize.h"],
            struct_text("to_byte", name, _to_byte(y, "none")),
        )  # fmt: skip

    def _dequantize(self, node: NodeRecord, name: str) -> Emitted:
        x, (y, to) = self._tensor(node, 0), self._y(node)
        given = f"{float_text(x.scale)}, {x.zero_point}, {self._x(node)}, {to}, {y.elements}"
        return Emitted(f"dequantize({given});", ["dequantize.h"])

    def _lookup(self, node: NodeRecord, name: str) -> Emitted:
        y, to = self._y(node)
        table = self.block.put(self._tensor(node, 1).data, "uint8_t")
        call = f"lookup({table}, {self._x(node)}, {to}, {y.elements});"
        return Emitted(call, ["lookup.h"])


def _pair(values: tuple[int, ...]) -> str:
    return f"{{{values[0]}, {values[1]}}}"


def _around(shape: Mapping[str, Any], padding: tuple[int, ...]) -> dict[str, Any]:
    """The fields of `struct conv_shape` of an image that has its padding around it."""
    top, bottom, left, right = padding
    return {
        "h": shape["h"] + top + bottom, "w": shape["w"] + left + right, "padding": _pair((0, 0)),
    }  # fmt: skip


def _pad(
    node: NodeRecord, x: TensorRecord, name: str, given: str, to: str, at: int
) -> tuple[Emitted, int]:
    """The call that brings a padded image to `at` of the scratch, and the scratch up to its end."""
    top, bottom, left, right = node.params[2:6]
    h, w = (1, *x.shape[2:])[-2:]
    each, planes = x.size // x.elements, x.shape[0] * x.shape[1]
    fields = {
        "planes": planes, "h": h, "w": w, "top": top, "left": left,
        "padded_h": h + top + bottom, "padded_w": w + left + right, "mode": node.params[8],
        "element_bytes": each,
    }  # fmt: skip
    bytes = planes * fields["padded_h"] * fields["padded_w"] * each
    return node_call("pad", name, fields, f"{given}, {to}", []), at + -(-bytes // ALIGN) * ALIGN


def _window(
    x: TensorRecord, y: TensorRecord, kernel: tuple[int, ...], stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> dict[str, Any]:  # fmt: skip
    return {
        "planes": x.shape[0] * x.shape[1], "h": x.shape[2], "w": x.shape[3],
        "oh": y.shape[2], "ow": y.shape[3],
        "kernel": _pair(kernel), "stride": _pair(stride), "padding": _pair(padding),
    }  # fmt: skip


def _to_byte(tensor: TensorRecord, activation: str) -> dict[str, Any]:
    """`struct to_byte` as csrc/kernels/quantized.h computes it, in float32."""
    low, high = map(np.float32, CLAMPS.get(activation, CLAMPS["none"]))
    inverse = np.float32(1) / np.float32(tensor.scale)
    least, most = np.float32(-tensor.zero_point), np.float32(255 - tensor.zero_point)
    return {
        "inverse": float_text(inverse), "low": float_text(max(low * inverse, least)),
        "high": float_text(min(high * inverse, most)), "zero_point": tensor.zero_point,
    }  # fmt: skip
