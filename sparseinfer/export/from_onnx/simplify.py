"""An ONNX model made simple by onnxscript's optimizer: one graph, constants folded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sparseinfer.export.from_onnx.groups import spell_out_groups
from sparseinfer.export.from_onnx.spell_out import spell_out

__all__ = [
    "OLDEST_OPSET", "Budget", "budget_of", "input_shapes", "input_types", "simplified",
    "with_all_outputs",
]  # fmt: skip

OLDEST_OPSET = 11

LEAST_BUDGET = 2**24
MORE = 4
"""Times the bytes of a model, the elements that its constants may have in all."""

SAME_SIZE = frozenset(
    "Abs Cast CastLike Ceil Clip Cos Erf Exp Flatten Floor Identity Log Neg Not Reciprocal Relu "
    "Reshape Round Sigmoid Sign Sin Softmax Sqrt Squeeze Tanh Transpose Unsqueeze".split()
)
NO_LARGER = frozenset(
    "ArgMax ArgMin ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Shape Size Slice "
    "Split NonZero".split()
)
BROADCAST = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Where "
    "Xor".split()
)
"""Operators that are computed where all they read is constant, by how much they give."""


class Budget:
    """How many elements constants that are computed may have, in all.

    A few bytes of a file could ask for any number: this bounds them by the bytes that are there.

    Example:
        >>> budget = Budget(10)
        >>> budget.take(8), budget.take(8)
        (True, False)
    """

    def __init__(self, elements: int) -> None:
        self.left = elements

    def take(self, elements: int) -> bool:
        """Whether so many more are allowed; they are then counted."""
        if elements > self.left:
            return False
        self.left -= elements
        return True


def budget_of(proto: Any) -> Budget:
    """What a model's constants may have: some for any, and more where it has more bytes."""
    return Budget(max(LEAST_BUDGET, MORE * proto.ByteSize()))


def input_shapes(proto: Any) -> dict[str, list[int | None] | None]:
    """The inputs of a model by name, without those that have a constant, and their shapes.

    None stands for a size, or a whole shape, that the model leaves open.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    found: dict[str, list[int | None] | None] = {}
    for own in proto.graph.input:
        if own.name in constants:
            continue
        kind = own.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
        found[own.name] = shape
    return found


def input_types(proto: Any) -> dict[str, torch.dtype]:
    """The types of `input_shapes`'s inputs: those that engines have not are float32 here."""
    import onnx

    kinds = {onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.BOOL: torch.bool}
    names = input_shapes(proto)
    return {
        own.name: kinds.get(own.type.tensor_type.elem_type, torch.float32)
        for own in proto.graph.input
        if own.name in names
    }


def simplified(proto: Any, shapes: Mapping[str, Sequence[int]], budget: Budget) -> Any:
    """The `onnx_ir.Model` of a model that is called with inputs of these shapes.

    Functions are put where they are called, and what only constants go into is computed; quantised
    constants stay as they are. Shapes that the file names are not believed but inferred.

    Raises:
        ValueError: the model is of an opset that is too old or not known, or is inconsistent.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    _check_opset(proto)
    try:
        with _faults_of("onnx_ir.serde"):
            model = ir.from_proto(proto)
        common.RemoveInitializersFromInputsPass()(model)
        common.InlinePass()(model)
        spell_out(model)
        spell_out_groups(model)
        _forget_shapes(model, shapes)
        optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=2**40, output_size_limit=2**40,
            should_fold=_folds(budget),
        )  # fmt: skip
        common.RemoveUnusedNodesPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        # Its propagation of data would write out every number of a Range of any length.
        with (
            _faults_of("onnx_ir.serde"),
            _faults_of("onnx_ir.passes.common.shape_inference") as faults,
        ):
            common.ShapeInferencePass(check_type=True, strict_mode=True, data_prop=False)(model)
        if faults:
            raise faults[0]
    # Of whatever the libraries meet in a file that somebody made up.
    except Exception as error:
        first = (str(error.__cause__ or error).splitlines() or [""])[0]
        raise ValueError(
            f"expected a valid ONNX model, got one that cannot be read: {type(error).__name__}: "
            f"{first}; try onnx.checker.check_model(path, full_check=True)"
        ) from error
    return model


def with_all_outputs(proto: Any, shapes: Mapping[str, Sequence[int]]) -> tuple[Any, list[str]]:
    """The simplified model, with every float32 that a node gives as an output, and their names."""
    import onnx_ir as ir

    model = simplified(proto, shapes, budget_of(proto))
    given = [own for node in model.graph for own in node.outputs]
    model.graph.outputs[:] = [own for own in given if own.dtype == ir.DataType.FLOAT and own.shape]
    return ir.to_proto(model), [own.name for own in model.graph.outputs]


@contextmanager
def _faults_of(logger: str) -> Iterator[list[BaseException]]:
    """The exceptions that a library logs, and goes on, instead of that log."""
    faults: list[BaseException] = []

    def note(record: logging.LogRecord) -> bool:
        if record.exc_info is not None and record.exc_info[1] is not None:
            faults.append(record.exc_info[1])
        return False

    own = logging.getLogger(logger)
    own.addFilter(note)
    try:
        yield faults
    finally:
        own.removeFilter(note)


def _check_opset(proto: Any) -> None:
    import onnx

    opset = max((own.version for own in proto.opset_import if own.domain in ("", "ai.onnx")),
                default=0)  # fmt: skip
    newest = onnx.defs.onnx_opset_version()
    if opset < OLDEST_OPSET:
        raise ValueError(
            f"expected an ONNX model of opset {OLDEST_OPSET} or later, got {opset}; try "
            "onnx.version_converter.convert_version(model, 17)"
        )
    if opset > newest:
        raise ValueError(
            f"expected an ONNX model of opset up to {newest}, got {opset}; try a newer onnx"
        )


def _forget_shapes(model: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Leave only the shapes of inputs, as they are now."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for value in model.graph.inputs:
        value.shape = ir.Shape(list(shapes[value.name]))


def _folds(budget: Budget) -> Callable[[Any], bool]:
    def folds(node: Any) -> bool:
        most = _most_elements(node)
        return most is not None and budget.take(most)

    return folds


def _most_elements(node: Any) -> int | None:
    """How many elements a node of constants gives at most; None: nobody knows."""
    if node.domain not in ("", "ai.onnx") or not node.inputs:
        return None
    shapes = [tuple(own.const_value.shape.numpy()) for own in node.inputs if own is not None]
    sizes = [math.prod(shape) for shape in shapes]
    kind = node.op_type
    if kind in SAME_SIZE or kind in NO_LARGER:
        return max(sizes[0], len(shapes[0]))
    if kind in BROADCAST:
        rank = max(map(len, shapes))
        padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
        return math.prod(max(column) for column in zip(*padded, strict=True))
    if kind == "Concat":
        return sum(sizes)
    if kind == "Gather":
        return math.prod(sizes)
    if kind == "ConstantOfShape":
        return _product(node.inputs[0])
    if kind in ("Expand", "Tile"):
        times = _product(node.inputs[1])
        return None if times is None else times * sizes[0]
    if kind == "Range":
        start, limit, delta = (float(own.const_value.numpy()) for own in node.inputs)
        return None if delta == 0 else max(0, math.ceil(abs((limit - start) / delta)))
    return None


def _product(value: Any) -> int | None:
    """The product of a constant's integers, of few."""
    numbers = np.asarray(value.const_value.numpy()).reshape(-1)
    return math.prod(int(number) for number in numbers) if len(numbers) <= 16 else None
