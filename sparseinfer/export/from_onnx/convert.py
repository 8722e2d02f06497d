"""A simplified ONNX model as a graph: every node by the table of operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparseinfer.export.errors import Missing, UnsupportedOperators
from sparseinfer.export.from_onnx.simplify import Budget, budget_of, simplified
from sparseinfer.export.from_onnx.table import LARGEST, OPERATORS, Call, Refusal
from sparseinfer.export.graph import MOST_DIMS, Graph, Node, Value
from sparseinfer.export.masks import Choice

__all__ = ["INSTEAD", "from_onnx"]

INSTEAD = "onnxruntime, which runs all of ONNX"
"""What to try where operators are missing."""


def from_onnx(proto: Any, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """The graph of an ONNX model whose inputs have these shapes.

    Raises:
        UnsupportedOperators: it lists every operator that the engine has not, with its node.
        ValueError: the model is inconsistent, or of an opset that is not taken.
    """
    budget = budget_of(proto)
    model = simplified(proto, shapes, budget)
    opset = model.opset_imports.get("", 0) or model.opset_imports.get("ai.onnx", 0)
    graph = Graph([], [], [])
    missing: list[Missing] = []
    known: dict[Any, Any] = {None: None}
    for own in model.graph.inputs:
        shape = tuple(own.shape.numpy())
        known[own] = Value(own.name, shape, dtype=_type_of(own, missing))
        graph.inputs.append(known[own])
    constants = _Constants(model.graph.initializers)
    shapeless: set[Any] = set()
    for node in model.graph:
        if not shapeless.isdisjoint(node.inputs):
            # The node that gave no shape is listed; this one only where it is missing anyhow.
            shapeless.update(node.outputs)
            if _is_known(node):
                known.update(dict.fromkeys(node.outputs))
                continue
        elif _shape_of(node.outputs[0]) is None:
            shapeless.update(node.outputs)
        _check_known(node, known, constants)
        inputs = [known[own] if own in known else constants.value(own) for own in node.inputs]
        outputs = _converted(node, inputs, opset, graph, missing, budget)
        known.update(zip(node.outputs, outputs, strict=False))
    for own in model.graph.outputs:
        found = known.get(own) or constants.value(own)
        if own in shapeless:
            continue
        if not isinstance(found, Value) or found.dtype != torch.float32:
            missing.append(Missing(str(own.type), own.name or "", "outputs are float32"))
        else:
            graph.outputs.append(found)
    if not graph.outputs and not missing:
        missing.append(Missing("its outputs", "", "it has none"))
    if missing:
        raise UnsupportedOperators(missing, INSTEAD)
    return graph


def _check_known(node: Any, known: Mapping[Any, Any], constants: _Constants) -> None:
    for own in node.inputs:
        if own not in known and own.name not in constants.initializers:
            raise ValueError(
                f"expected the nodes of an ONNX model in the order in which they run, got "
                f"{node.op_type} {node.name!r}, which reads {own.name!r} before anything gives it; "
                "try onnx.checker.check_model on it"
            )


class _Constants:
    """The initializers of a model as values, each once and only where it is read."""

    def __init__(self, initializers: Mapping[str, Any]) -> None:
        self.initializers = initializers
        self.values: dict[str, Value] = {}

    def value(self, own: Any) -> Value | None:
        name = own.name or ""
        if name in self.initializers and name not in self.values:
            array = self.initializers[name].const_value.numpy()
            try:
                tensor = torch.from_numpy(array.copy(order="C"))
            except TypeError:  # of types that numpy has and torch has not
                return None
            self.values[name] = Value(name, tuple(tensor.shape), tensor, tensor.dtype)
        return self.values.get(name)


def _converted(
    node: Any,
    inputs: Sequence[Any],
    opset: int,
    graph: Graph,
    missing: list[Missing],
    budget: Budget,
) -> tuple[Any, ...]:
    """What a node gives; where it is missing, a value of that shape, to find what else is."""
    first = node.outputs[0]
    shape = _shape_of(first)
    why = "no operator of the engine computes it"
    if not _is_known(node):
        pass
    elif shape is None:
        why = "the shape that it gives depends on data"
    elif len(shape) > MOST_DIMS or any(not 0 < size < LARGEST for size in shape):
        why = f"it gives {list(shape)}: tensors have up to {MOST_DIMS} dimensions, and elements"
    else:
        if _makes_constants(node, inputs):
            if not budget.take(torch.Size(shape).numel()):
                raise ValueError(
                    "expected constants that the model holds, got more that it computes; try "
                    "onnxscript.optimizer.optimize on it"
                )
        before = len(graph.nodes)
        try:
            found = OPERATORS[node.op_type](Call(graph, node, inputs, shape, opset))
            found = found if isinstance(found, tuple) else (found,)
            _check_shape(found[0], shape)
            _take_names(found, node, graph.nodes[before:])
            return found
        except Refusal as refusal:
            del graph.nodes[before:]
            why = str(refusal)
        # A made-up node may have anything in the place of anything.
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            del graph.nodes[before:]
            why = f"it is no such operator as ONNX has: {error}"
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    missing.append(Missing(operator, node.name or first.name or "", why))
    return tuple(Value(own.name or "", _shape_of(own) or ()) for own in node.outputs)


def _makes_constants(node: Any, inputs: Sequence[Any]) -> bool:
    """Whether it is computed here, or takes constants as large as what it gives."""
    if node.op_type in ("Expand", "Tile", "Where") or any(isinstance(x, Choice) for x in inputs):
        return True
    values = [own for own in inputs if isinstance(own, Value)]
    return bool(values) and all(own.constant is not None for own in values)


def _check_shape(found: Any, shape: tuple[int, ...]) -> None:
    own = getattr(found, "shape", shape)
    if own != shape:
        raise Refusal(f"it gives {list(own)}, and the model has {list(shape)} there")


def _take_names(found: tuple[Any, ...], node: Any, new: Sequence[Node]) -> None:
    """Call what its last nodes give by the names that the model has for it."""
    given = {step.output for step in new}
    for value, own in zip(found, node.outputs, strict=False):
        if isinstance(value, Value) and value in given:
            value.name = own.name or value.name


def _is_known(node: Any) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in OPERATORS


def _shape_of(value: Any) -> tuple[int, ...] | None:
    shape = value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(shape)


def _type_of(own: Any, missing: list[Missing]) -> torch.dtype:
    import onnx_ir

    kinds = {
        onnx_ir.DataType.FLOAT: torch.float32, onnx_ir.DataType.INT64: torch.int64,
        onnx_ir.DataType.BOOL: torch.bool,
    }  # fmt: skip
    if own.dtype not in kinds:
        missing.append(Missing(str(own.dtype), own.name, "inputs are float32, int64 or bool"))
    return kinds.get(own.dtype, torch.float32)
