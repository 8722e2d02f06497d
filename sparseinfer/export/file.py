"""The graph as the bytes of a model file: csrc/runtime/FORMAT.md. The library reads them."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from sparseinfer.export.aligned import aligned_size, bytes_of
from sparseinfer.export.errors import Missing, UnsupportedOperators
from sparseinfer.export.graph import MOST_DIMS, Graph, Node, Value
from sparseinfer.formats.packed import pack
from sparseinfer.formats.panel import kblock_for
from sparseinfer.kernels.activations import ENGINE_ACTIVATIONS
from sparseinfer.native import seal_model
from sparseinfer.quantize.scheme import Scheme

__all__ = ["OPERATORS", "write_graph"]

OPERATORS = {
    "linear": 1, "conv": 2, "depthwise_conv": 3, "add": 4, "activation": 5, "max_pool": 6,
    "average_pool": 7, "global_average_pool": 8, "reshape": 9, "softmax": 10, "concat": 11,
    "quantize": 12, "dequantize": 13, "layer_norm": 14, "attention": 15, "embedding": 16,
    "permute": 17, "where": 18, "slice": 19, "binary": 20, "resize": 21,
    "reduce": 22, "unary": 23, "lookup": 24,
}  # fmt: skip
"""Their numbers in a file (csrc/runtime/operators.inc)."""

KINDS = {
    "binary": ("add", "subtract", "multiply", "divide", "minimum", "maximum", "power"),
    "resize": ("nearest", "nearest_exact", "bilinear", "bilinear_aligned"),
    "reduce": ("sum", "mean", "maximum", "minimum"),
    "unary": (
        "hardswish", "hardsigmoid", "leaky_relu", "elu", "clamp", "softplus", "abs", "exp", "log",
        "sqrt", "rsqrt", "erf", "sin", "cos", "floor", "ceil", "round",
    ),
}  # fmt: skip
"""What an operator computes, by its number: its first parameter."""

WHY = {
    "pad": "it pads by many times an image's own size",
    "matmul": "it multiplies two computed tensors: softmax between two such products is taken",
    "zero_nan": "it replaces NaN: the softmax of attention is taken",
}
"""What is said of nodes that no pass found a place for."""

HEADER = struct.Struct("<8s2IQ6I2Q2I56x")
TENSOR = struct.Struct("<3I8IIfIQ")
NODE = struct.Struct("<6I10i")
VERSION = 1
PACKED = 255
TYPES = {
    torch.float32: 0, torch.bfloat16: 2, torch.int8: 3, torch.uint8: 4, torch.int64: 5,
    torch.bool: 6,
}  # fmt: skip
INPUT, CONSTANT, COMPUTED, BATCHED = 0, 1, 2, 3
NO_TENSOR = 0xFFFFFFFF
LONGEST_NAME = 255
FLOAT32 = Scheme("float32", "float32")
PANEL_MOST_COLUMNS = 65535


def write_graph(
    graph: Graph, metadata: bytes, target: str | None = None, scheme: Scheme = FLOAT32
) -> Tensor:
    """The file of an optimised graph, in memory aligned as the library reads it.

    `target`: the machine that weights are packed for; None: this one. `scheme`: the types of
    weights that floats are multiplied with, and of what becomes of the floats for that.

    Raises:
        UnsupportedOperators: nodes are left that have no number in a file.

    Example:
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> graph = Graph([x], [Node("add", "", [x, x], y)], [y])
        >>> bytes(write_graph(graph, b"")[:8].numpy())
        b'SINFMODL'
    """
    missing = [
        Missing(node.op, node.name, WHY.get(node.op, "no operator of the engine computes it here"))
        for node in graph.nodes
        if node.op not in OPERATORS
    ]
    if missing:
        raise UnsupportedOperators(missing)
    return _File(graph, metadata, target or "host", scheme).write()


class _File:
    def __init__(self, graph: Graph, metadata: bytes, target: str, scheme: Scheme) -> None:
        self.graph = _with_own_outputs(graph)
        self.metadata = metadata
        self.target, self.scheme = target, scheme
        self.numbers: dict[Value, int] = {}
        # A weight may be that of several nodes, which cut it into groups of their own, or round it.
        self.packed: dict[tuple[Value, int, torch.dtype], int] = {}
        self.tensors: list[bytes] = []
        self.names: list[bytes] = []
        self.data: list[Tensor] = []

    def write(self) -> Tensor:
        for value in self.graph.inputs:
            self.numbers[value] = self._add(value, BATCHED if value.most_batch else INPUT)
        batch, most_batch = next(
            ((value.shape[0], value.most_batch) for value in self.graph.inputs if value.most_batch),
            (0, 0),
        )
        operands: list[int] = []
        nodes, node_names = [], []
        for node in self.graph.nodes:
            numbers = [self._operand(node, index) for index in range(len(node.inputs))]
            operands += numbers
            output = self.numbers[node.output] = self._add(node.output, COMPUTED)
            name = _name(node.name)
            node_names.append(name)
            nodes.append(NODE.pack(
                OPERATORS[node.op], ENGINE_ACTIVATIONS.index(node.activation), len(numbers), output,
                len(name), 0, *_params(node),
            ))  # fmt: skip
        outputs = [self.numbers[value] for value in self.graph.outputs]
        names = b"".join(name + b"\0" for name in (*self.names, *node_names))
        header = HEADER.pack(
            b"SINFMODL", VERSION, 0, 0, len(self.tensors), len(nodes), len(operands),
            len(outputs), len(names), len(self.metadata), 0, 0, batch, most_batch,
        )  # fmt: skip
        sections = [
            header, b"".join(self.tensors), b"".join(nodes), _words(operands), _words(outputs),
            names, self.metadata,
        ]  # fmt: skip
        parts = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in sections if part]
        parts += self.data
        size = sum(aligned_size(len(part)) for part in parts)
        file = torch.zeros(size, dtype=torch.uint8, device="cpu")
        at = 0
        for part in parts:
            file[at : at + len(part)] = part
            at += aligned_size(len(part))
        file[16:24] = torch.frombuffer(bytearray(struct.pack("<Q", at)), dtype=torch.uint8)
        seal_model(file.data_ptr(), at)
        return file

    def _operand(self, node: Node, index: int) -> int:
        value = node.inputs[index]
        if value is None:
            return NO_TENSOR
        if index == 1 and node.op in ("linear", "conv"):
            return self._weight(node, value)
        if value not in self.numbers:
            assert value.constant is not None, f"{node} reads {value} before it is computed"
            whole = value.constant.detach()
            plain = whole if whole.dtype == torch.int8 else whole.float()
            self.numbers[value] = self._add(value, CONSTANT, TYPES[plain.dtype], bytes_of(plain))
        return self.numbers[value]

    def _weight(self, node: Node, value: Value) -> int:
        x = node.inputs[0]
        assert x is not None
        key = value, node.attributes.get("groups", 1), x.dtype
        if key not in self.packed:
            assert value.constant is not None, f"{node} reads {value} as its weight"
            packed = _packed(node, value, self.target, self.scheme)
            self.packed[key] = self._add(value, CONSTANT, PACKED, packed)
        return self.packed[key]

    def _add(
        self, value: Value, kind: int, type: int | None = None, data: Tensor | None = None
    ) -> int:
        number = len(self.tensors)
        name = _name(value.name)
        self.names.append(name)
        dims = (*value.shape, *[0] * (MOST_DIMS - len(value.shape)))
        size = 0 if data is None else len(data)
        scale = (0.0, 0) if value.scale is None else (value.scale.scale, value.scale.zero_point)
        self.tensors.append(TENSOR.pack(
            TYPES[value.dtype] if type is None else type, kind, len(value.shape), *dims, len(name),
            *scale, size,
        ))  # fmt: skip
        if data is not None:
            self.data.append(data)
        return number


def _with_own_outputs(graph: Graph) -> Graph:
    """Every output of a file is computed by a node of its own: others are copied."""
    computed = {node.output for node in graph.nodes}
    nodes, outputs = list(graph.nodes), []
    for value in graph.outputs:
        if value not in computed or value in outputs:
            copy = Value(f"{value.name} out", value.shape)
            nodes.append(Node("reshape", "", [value], copy))
            value = copy
        outputs.append(value)
    return Graph(graph.inputs, nodes, outputs)


def _packed(node: Node, value: Value, target: str, scheme: Scheme) -> Tensor:
    """A weight as the kernels read it: dense ones too, which panel computes as fast as any."""
    weight, x = value.constant, node.inputs[0]
    assert weight is not None and x is not None
    columns = weight[0].numel()
    if x.dtype == torch.uint8:
        groups = node.attributes.get("groups", 1)
        return pack(
            weight.float(), "panel", groups=groups, weights="int8", scales=value.weight_scales,
            target=target,
        )  # fmt: skip
    if columns > PANEL_MOST_COLUMNS:
        return pack(weight.float(), "csr", groups=node.attributes.get("groups", 1), target=target)
    types: dict[str, Any] = {
        "weights": scheme.weights, "activations": scheme.activations, "target": target,
    }  # fmt: skip
    if node.op == "conv":
        return pack(weight.float(), "panel", groups=node.attributes["groups"], **types)
    if scheme.rounds:
        return pack(weight.float(), "panel", **types)
    tokens = torch.Size(x.shape[:-1]).numel()
    return pack(weight.float(), "panel", kblock=kblock_for(tokens), **types)


def _params(node: Node) -> list[int]:
    given = node.attributes
    params: list[int] = []
    if node.op == "conv":
        params = [*given["stride"], *given["padding"], *given["dilation"]]
    elif node.op == "depthwise_conv":
        params = [*given["stride"], *given["padding"]]
    elif node.op in ("max_pool", "average_pool"):
        params = [*given["kernel"], *given["stride"], *given["padding"]]
        params += [int(given.get("count_padding", False))]
    elif node.op in ("softmax", "concat"):
        params = [given["axis"]]
    elif node.op == "layer_norm":
        params = [_bits(given["eps"]), int(not given["centred"])]
    elif node.op == "attention":
        params = [given["heads"], given["features"], _bits(given["scale"]), int(given["causal"])]
        params += [*given["first"], int(given["tokens_first"]), int(given.get("rounds", False))]
    elif node.op == "permute":
        params = given["axes"]
    elif node.op == "slice":
        params = [given["axis"], given["start"], given["step"]]
    elif node.op == "where":
        params = [int(given["exact"])]
    elif node.op in KINDS:
        params = [KINDS[node.op].index(given["kind"]), *given.get("size", ())]
        params += [_bits(number) for number in (*given.get("ratio", ()), *given.get("numbers", ()))]
    if node.op == "reduce":
        params += [sum(1 << axis for axis in given["axes"]), int(given["keepdim"])]
    return params + [0] * (10 - len(params))


def _bits(number: float) -> int:
    """A float32 as the integer of the same bits."""
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits


def _name(text: str) -> bytes:
    """A name as a file has it: UTF-8 without zero bytes, cut where it is too long."""
    whole = text.replace("\0", " ").encode("utf-8", "replace")[:LONGEST_NAME]
    return whole.decode("utf-8", "ignore").encode("utf-8")


def _words(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)
