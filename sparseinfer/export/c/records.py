"""A model file as records: what csrc/runtime/FORMAT.md says, of a file that was checked.

Only files that the library has opened come here, so nothing is checked again.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from sparseinfer.export.aligned import aligned_size
from sparseinfer.export.file import HEADER, KINDS, NO_TENSOR, NODE, OPERATORS, PACKED, TENSOR
from sparseinfer.kernels.activations import ENGINE_ACTIVATIONS

__all__ = ["NodeRecord", "Packed", "Records", "TensorRecord", "read_packed", "read_records"]

TYPES = {
    0: "float32", 2: "bfloat16", 3: "int8", 4: "uint8", 5: "int64", 6: "bool", PACKED: "packed",
}  # fmt: skip
SIZES = {"float32": 4, "bfloat16": 2, "int8": 1, "uint8": 1, "int64": 8, "bool": 1}
CONSTANT, COMPUTED = 1, 2
BLOB = struct.Struct("<8s4I4I2I2Q8I2Q2Q")
FORMATS = {1: "csr", 2: "panel", 3: "nm", 4: "bsr"}
PANEL = 2
PANEL_ENTRY = 40
SECTION_SPARE = 64
"""Zero bytes after the elements of each section of a packed weight, at least."""


@dataclass(frozen=True)
class TensorRecord:
    """A tensor; `data` are the bytes of a constant, and those of a packed weight its buffer."""

    name: str
    type: str
    kind: int
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    data: bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        return self.elements * SIZES[self.type]


@dataclass(frozen=True)
class NodeRecord:
    """A node; operands and output are numbers of tensors, None where it does without."""

    name: str
    op: str
    activation: str
    operands: tuple[int | None, ...]
    output: int
    params: tuple[int, ...]

    def operand(self, which: int) -> int | None:
        return self.operands[which] if which < len(self.operands) else None

    @property
    def kind(self) -> str:
        """What an operator of several computes, such as power of binary; empty for others."""
        return KINDS[self.op][self.params[0]] if self.op in KINDS else ""


@dataclass(frozen=True)
class Records:
    tensors: tuple[TensorRecord, ...]
    nodes: tuple[NodeRecord, ...]
    outputs: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The inputs, in order: neither constant nor computed."""
        numbered = enumerate(self.tensors)
        return tuple(at for at, own in numbered if own.kind not in (CONSTANT, COMPUTED))


def read_records(file: bytes) -> Records:
    """The records of a file.

    Example:
        >>> from sparseinfer.export.file import write_graph
        >>> from sparseinfer.export.graph import Graph, Node, Value
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> file = write_graph(Graph([x], [Node("add", "sum", [x, x], y)], [y]), b"{}")
        >>> records = read_records(bytes(file.numpy()))
        >>> records.nodes[0].op, records.nodes[0].operands, records.tensors[records.inputs[0]].name
        ('add', (0, 0), 'x')
    """
    header = HEADER.unpack_from(file)
    tensors, nodes, operands, outputs, names_bytes, metadata_bytes = header[4:10]
    at = HEADER.size
    tensor_rows = list(TENSOR.iter_unpack(file[at : at + TENSOR.size * tensors]))
    at = aligned_size(at + TENSOR.size * tensors)
    node_rows = list(NODE.iter_unpack(file[at : at + NODE.size * nodes]))
    at = aligned_size(at + NODE.size * nodes)
    operand_numbers = struct.unpack_from(f"<{operands}I", file, at)
    at = aligned_size(at + 4 * operands)
    output_numbers = struct.unpack_from(f"<{outputs}I", file, at)
    at = aligned_size(at + 4 * outputs)
    names = file[at : at + names_bytes].split(b"\0")
    at = aligned_size(aligned_size(at + names_bytes) + metadata_bytes)

    found = []
    for row, name in zip(tensor_rows, names[:tensors], strict=True):
        type, kind, ndim, *dims, _, scale, zero_point, size = row
        own = file[at : at + size] if kind == CONSTANT else b""
        at += aligned_size(len(own))
        shape = tuple(dims[:ndim])
        found.append(
            TensorRecord(
                name.decode("utf-8", "replace"), TYPES[type], kind, shape, scale, zero_point, own
            )
        )
    ops, activations = {number: op for op, number in OPERATORS.items()}, list(ENGINE_ACTIVATIONS)
    made, first = [], 0
    for row, name in zip(node_rows, names[tensors : tensors + nodes], strict=True):
        op, activation, count, output, _, _, *params = row
        own_operands = operand_numbers[first : first + count]
        first += count
        made.append(NodeRecord(
            name.decode("utf-8", "replace"), ops[op], activations[activation],
            tuple(None if number == NO_TENSOR else number for number in own_operands), output,
            tuple(params),
        ))  # fmt: skip
    return Records(tuple(found), tuple(made), output_numbers)


@dataclass(frozen=True)
class Packed:
    """The sections of a packed weight: of panels, or of rows; as it was read, others have none.

    `order` is empty where each row stands at its own place; `scale` and `row_sum` are of int8.
    """

    format: str
    value_type: str
    shape: tuple[int, ...]
    groups: int
    g: int
    blocks: int
    panels: int
    sections: dict[str, bytes]

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def in_panels(self) -> bool:
        return self.panels > 0

    @property
    def in_rows(self) -> bool:
        """Whether each row has columns and values of its own."""
        return "start" in self.sections


def read_packed(blob: bytes) -> Packed:
    """The sections of a packed weight, each without the zero bytes after it.

    Example:
        >>> import torch
        >>> from sparseinfer.formats.packed import pack
        >>> packed = read_packed(bytes(pack(torch.eye(4, 8), "panel", weights="int8").numpy()))
        >>> packed.value_type, packed.rows, packed.columns, len(packed.sections["scale"])
        ('int8', 4, 8, 16)
    """
    head = BLOB.unpack_from(blob)
    format, value_type, ndim = FORMATS[head[2]], head[3], head[4]
    shape, groups, params, counts = tuple(head[5 : 5 + ndim]), head[9], head[13:21], head[21:23]
    type_name = {0: "float32", 1: "float16", 2: "bfloat16", 3: "int8"}[value_type]
    if head[2] != PANEL:
        return Packed(format, type_name, shape, groups, 0, 0, 0, {})
    rows, columns, block = shape[0], math.prod(shape[1:]), params[3]
    panels = groups * -(-(rows // groups) // 4)
    blocks = 1 if block == 0 else -(-columns // block)
    is_int8 = type_name == "int8"
    sizes = {"panel": PANEL_ENTRY * panels * blocks}
    if params[4]:
        sizes["order"] = 4 * rows
    if is_int8:
        sizes |= {"scale": 4 * rows, "row_sum": 4 * rows}
    value_bytes = {"float32": 4, "bfloat16": 4 if params[1] == 2 else 2, "int8": 4}[type_name]
    sizes |= {"index": 2 * counts[0], "value": value_bytes * counts[1]}
    sections, at = {"order": b""}, BLOB.size
    for name, size in sizes.items():
        sections[name] = blob[at : at + size]
        at += aligned_size(size + SECTION_SPARE)
    return Packed(format, type_name, shape, groups, params[1], blocks, panels, sections)
