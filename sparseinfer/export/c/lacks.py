"""What a model needs and the plain C has not, collected so that one error tells all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from sparseinfer.export.c.records import NodeRecord, Packed, Records
from sparseinfer.export.c.repack import MOST_COLUMNS
from sparseinfer.export.errors import Missing

__all__ = ["OPERATORS", "NotInC", "check_model"]

OPERATORS = (
    "linear", "conv", "depthwise_conv", "add", "activation", "max_pool", "average_pool",
    "global_average_pool", "reshape", "softmax", "concat", "quantize", "dequantize",
    "lookup", "binary", "unary", "permute", "slice", "reduce", "layer_norm", "resize",
)  # fmt: skip
"""Operators that the pieces compute."""

TYPES = ("float32", "uint8", "int8", "packed")
MOST_BYTES = 2**31 - 1
"""Of a tensor: the pieces count in int32."""
MOST_SIZE = 2**30
"""Of an image with its padding, along either axis."""


class NotInC(ValueError):
    """A model needs what the plain C has not; `missing` are all its nodes that do.

    Example:
        >>> error = NotInC([Missing("attention", "attend", "no plain C computes it")])
        >>> print(error)
        expected a model of operators that the plain C has, got 1 node that it has not; \
try --format c, which uses the library:
          attention in 'attend': no plain C computes it
    """

    def __init__(self, missing: list[Missing]) -> None:
        self.missing = missing
        count = f"{len(missing)} node{'s' * (len(missing) != 1)}"
        lines = "\n  ".join(map(str, missing))
        super().__init__(
            f"expected a model of operators that the plain C has, got {count} that it has not; "
            f"try --format c, which uses the library:\n  {lines}"
        )


def check_model(records: Records, packed: Mapping[int, Packed]) -> None:
    """Refuse what the pieces do not compute.

    Raises:
        NotInC: there are such nodes.
    """
    missing = [
        Missing(node.op, node.name, why)
        for node in records.nodes
        for why in _reasons(records, packed, node)
    ]
    if missing:
        raise NotInC(missing)


def _reasons(records: Records, packed: Mapping[int, Packed], node: NodeRecord) -> Iterator[str]:
    if node.op not in OPERATORS:
        yield f"no plain C computes it{f' ({node.kind})' if node.kind else ''}"
        return
    numbers = [number for number in (*node.operands, node.output) if number is not None]
    tensors = [records.tensors[number] for number in numbers]
    for type in dict.fromkeys(tensor.type for tensor in tensors):
        if type not in TYPES:
            yield f"it has a tensor of {type}, which no plain C computes with"
    if any(tensor.type != "packed" and tensor.size > MOST_BYTES for tensor in tensors):
        yield f"it has a tensor of more than {MOST_BYTES:,} bytes"
    for weight in (packed[number] for number in numbers if number in packed):
        if not (weight.in_panels or weight.in_rows):
            yield f"its weight has more than {MOST_COLUMNS:,} columns of a convolution"
        elif weight.value_type == "bfloat16":
            yield "it multiplies pairs of bfloat16, and plain C computes in float32"
    if node.op in ("conv", "depthwise_conv"):
        top, bottom, left, right = node.params[2:6]
        sizes = [tensors[0].shape[-1] + left + right]
        if len(tensors[0].shape) == 4:
            sizes.append(tensors[0].shape[2] + top + bottom)
        if max(sizes) > MOST_SIZE:
            yield f"its padded image is larger than {MOST_SIZE:,} pixels"
        elif node.op == "conv" and node.params[8] != 0:
            planes = tensors[0].shape[0] * tensors[0].shape[1]
            if 4 * planes * math.prod(sizes) > MOST_BYTES:
                yield f"its padded image is larger than {MOST_BYTES:,} bytes"
