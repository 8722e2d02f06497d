"""Operators that compute on bytes, those of ONNX Runtime among them, spelled out in an ONNX model:
DequantizeLinear of what they read, the operator on floats, QuantizeLinear of what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["QUANTIZED", "spell_out"]

RUNTIME = "com.microsoft"


@dataclass(frozen=True)
class Quantized:
    """An operator on bytes: the one on floats that it stands for, and where its inputs are.

    Each number is the place of a tensor, with its scale and its zero point behind it; `output` is
    that of the scale and zero point of what it gives.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    bias: int | None = None


QUANTIZED = {
    "QLinearConv": Quantized("Conv", (0, 3), 6, 8),
    "QLinearMatMul": Quantized("MatMul", (0, 3), 6),
    "QGemm": Quantized("Gemm", (0, 3), 7, 6),
    "QLinearAdd": Quantized("Add", (0, 3), 6),
    "QLinearMul": Quantized("Mul", (0, 3), 6),
    "QLinearGlobalAveragePool": Quantized("GlobalAveragePool", (0,), 3),
    "QLinearAveragePool": Quantized("AveragePool", (0,), 3),
    "QLinearSigmoid": Quantized("Sigmoid", (0,), 3),
    "QLinearLeakyRelu": Quantized("LeakyRelu", (0,), 3),
    "QLinearSoftmax": Quantized("Softmax", (0,), 3),
}
"""THE table of operators on bytes. QLinearConcat has as many inputs as it likes, see below."""


def spell_out(model: Any) -> None:
    """Replace operators on bytes in an onnx_ir model; one that is called otherwise stays.

    Example:
        >>> import onnx_ir
        >>> spell_out(onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=10))
    """
    import onnx_ir as ir

    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx", RUNTIME):
            continue
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""
            continue
        row = QUANTIZED.get(node.op_type)
        if node.op_type == "QLinearConcat":
            row = Quantized("Concat", tuple(range(2, len(node.inputs), 3)), 0)
        new = None if row is None or not _is_whole(node, row) else _spelled(node, row)
        if new:
            for own in new:
                own.name = node.name or node.outputs[0].name
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], new, node.outputs[:1], new[-1].outputs[:1]
            )


def _is_whole(node: Any, row: Quantized) -> bool:
    given = [own is not None for own in node.inputs]
    needed = [at + k for at in row.inputs for k in range(2)]
    return all(at < len(given) and given[at] for at in needed) and len(node.outputs) == 1


def _spelled(node: Any, row: Quantized) -> list[Any]:
    import onnx_ir as ir

    def optional(at: int) -> Any:
        return node.inputs[at] if at < len(node.inputs) else None

    # ONNX Runtime's own operators may have their channels last.
    attributes = {name: own for name, own in node.attributes.items() if name != "channels_last"}
    channels_last = node.attributes.get("channels_last")
    if channels_last is not None and channels_last.value:
        return []
    turned = node.attributes.get("transB")
    by_rows = row.op == "Conv" or (turned is not None and bool(turned.value))
    new = []
    for number, at in enumerate(row.inputs):
        given = [node.inputs[at], node.inputs[at + 1], optional(at + 2)]
        axis = 0 if number == 0 or by_rows else 1
        new.append(ir.node("DequantizeLinear", given, {"axis": axis}))
    inputs = [own.outputs[0] for own in new]
    if row.bias is not None and optional(row.bias) is not None:
        scale = _product(node, attributes)
        if scale is None:
            return []
        made = ir.node("Constant", [], {"value": ir.tensor(scale)})
        new.append(made)
        new.append(ir.node("DequantizeLinear", [optional(row.bias), made.outputs[0]], {"axis": 0}))
        inputs.append(new[-1].outputs[0])
    new.append(ir.node(row.op, inputs, attributes))
    scale, zero = optional(row.output), optional(row.output + 1)
    if scale is not None:
        new.append(ir.node("QuantizeLinear", [new[-1].outputs[0], scale, zero]))
    return new


def _product(node: Any, attributes: dict[str, Any]) -> Any:
    """The scale of a bias: those of both factors together."""
    scales = [node.inputs[at].const_value for at in (1, 4)]
    if None in scales:
        return None
    alpha = attributes.pop("alpha", None)
    if alpha is not None and alpha.value != 1:
        return None
    product = scales[0].numpy().astype(np.float32) * scales[1].numpy().astype(np.float32)
    return product.reshape(()) if product.size == 1 else product.reshape(-1)
