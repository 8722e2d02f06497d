"""GroupNormalization in an ONNX model as InstanceNormalization of its groups.

No shapes are inferred through the operator itself in all of its versions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["spell_out_groups"]


def spell_out_groups(model: Any) -> None:
    """Replace the operator in an onnx_ir model; one that is called otherwise stays.

    Until opset 21 its weights are of the groups, since then of the channels.

    Example:
        >>> import onnx_ir
        >>> spell_out_groups(onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=10))
    """
    import onnx_ir as ir

    opset = model.opset_imports.get("", 0)
    for node in list(model.graph):
        if node.op_type != "GroupNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        new = _spelled(node, of_groups=opset < 21)
        if new:
            for own in new:
                own.name = node.name or node.outputs[0].name
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], new, node.outputs[:1], new[-1].outputs[:1]
            )


def _spelled(node: Any, of_groups: bool) -> list[Any]:
    import onnx_ir as ir

    groups = node.attributes.get("num_groups")
    weights = [None if own is None else own.const_value for own in node.inputs[1:3]]
    known = [own.numpy().reshape(-1) for own in weights if own is not None]
    if groups is None or len(known) != 2:
        return []
    count, (scale, bias) = groups.as_int(), known
    if count < 1 or len(scale) != len(bias) or len(scale) % count:
        return []
    if of_groups and len(scale) != count:
        return []
    new: list[Any] = []

    def constant(numbers: Any) -> Any:
        new.append(ir.node("Constant", [], {"value": ir.tensor(numbers)}))
        return new[-1].outputs[0]

    def step(op: str, *inputs: Any, **attributes: Any) -> Any:
        new.append(ir.node(op, list(inputs), attributes))
        return new[-1].outputs[0]

    x = node.inputs[0]
    shape = step("Shape", x)
    y = step("Reshape", x, constant(np.array([0, count, -1])))
    own = (scale, bias) if of_groups else (np.ones(count, "f"), np.zeros(count, "f"))
    epsilon = node.attributes.get("epsilon")
    eps = 1e-5 if epsilon is None else epsilon.as_float()
    y = step("InstanceNormalization", y, *map(constant, own), epsilon=eps)
    if not of_groups:
        y = step("Reshape", y, constant(np.array([0, len(scale), -1])))
        y = step("Mul", y, constant(scale[:, None]))
        y = step("Add", y, constant(bias[:, None]))
    step("Reshape", y, shape)
    return new
