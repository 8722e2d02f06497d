"""What a model needs and the plain C has not, collected so that one error tells all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparseinfer.export.c.records import NodeRecord, Packed, Records
from sparseinfer.export.errors import Missing

__all__ = ["OPERATORS", "NotInC", "check_model"]

OPERATORS = (
    "linear", "conv", "depthwise_conv", "add", "activation", "max_pool", "average_pool",
    "global_average_pool", "reshape", "softmax", "concat", "quantize", "dequantize",
    "lookup",
)  # fmt: skip
"""Operators that the pieces compute."""

TYPES = ("float32", "uint8", "int8", "packed")
PADDINGS = ("zeros", "reflect", "replicate", "circular")
MOST_BYTES = 2**31 - 1
"""Of a tensor: the pieces count in int32."""
MOST_SIZE = 2**30
"""Of an image with its padding, along either axis."""


class NotInC(ValueError):
    """A model needs what the plain C has not; `missing` are all its nodes that do.

    Example:
        >>> error = NotInC([Missing("layer_norm", "norm", "no plain C computes it")])
        >>> print(error)
        expected a model of operators that the plain C has, got 1 node that it has not; \
try --format c, which uses the library:
          layer_norm in 'norm': no plain C computes it
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
        if not weight.sections:
            yield f"its weight is of format {weight.format}, and plain C reads panel"
        elif weight.value_type not in ("float32", "int8"):
            yield f"its weight is of {weight.value_type}, and plain C reads float32 and int8"
    if node.op in ("conv", "depthwise_conv"):
        top, bottom, left, right = node.params[2:6]
        sizes = [tensors[0].shape[-1] + left + right]
        if len(tensors[0].shape) == 4:
            sizes.append(tensors[0].shape[2] + top + bottom)
        if max(sizes) > MOST_SIZE:
            yield f"its padded image is larger than {MOST_SIZE:,} pixels"
    if node.op == "conv" and node.params[8] != 0:
        yield f"its padding is {PADDINGS[node.params[8]]}, and plain C has zeros"
