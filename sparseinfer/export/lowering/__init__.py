"""Core ATen operators as nodes of the graph: one function an operator, in one table.

Values keep torch's own layouts: images `[batch, channels, height, width]`, features last elsewhere.
They are what the kernels read, so that no layout changes inside a network.
"""

from sparseinfer.export.lowering import (
    attention,
    binary,
    elementwise,
    expand,
    moves,
    norm,
    pool,
    reduce,
    resize,
    unary,
    weighted,
    where,
)
from sparseinfer.export.lowering.table import LOWERINGS, Call, Refusal

__all__ = [
    "LOWERINGS", "Call", "Refusal", "attention", "binary", "elementwise", "expand", "moves", "norm",
    "pool", "reduce", "resize", "unary", "weighted", "where",
]  # fmt: skip
