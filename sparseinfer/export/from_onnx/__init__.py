"""ONNX models as graphs: read and validated, simplified, then converted by one table."""

from sparseinfer.export.from_onnx import (
    elementwise,
    masks,
    moves,
    norm,
    parts,
    pool,
    quantized,
    resize,
    weighted,
)
from sparseinfer.export.from_onnx.convert import INSTEAD, from_onnx
from sparseinfer.export.from_onnx.read import is_onnx, read_onnx
from sparseinfer.export.from_onnx.simplify import input_shapes, input_types, with_all_outputs
from sparseinfer.export.from_onnx.table import OPERATORS

__all__ = [
    "INSTEAD", "OPERATORS", "elementwise", "from_onnx", "input_shapes", "input_types", "is_onnx",
    "masks", "moves", "norm", "parts", "pool", "quantized", "read_onnx", "resize", "weighted",
    "with_all_outputs",
]  # fmt: skip
