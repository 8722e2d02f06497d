"""What a model file holds: its tensors, its nodes, and the bytes of all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparseinfer.export.aligned import aligned_size
from sparseinfer.export.profile import sparsity_of
from sparseinfer.native import Model

__all__ = ["EngineFacts", "NodeFacts", "TensorFacts", "facts_of"]


@dataclass(frozen=True)
class TensorFacts:
    """A tensor. `kind` is input, constant or computed.

    `dtype` of a packed weight is that of its values. `bytes` are those that a constant takes in the
    file, and the elements of any other.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    format: str
    nnz: int | None


@dataclass(frozen=True)
class NodeFacts:
    """A node: the module that it comes from, and what it reads and gives, by numbers of tensors.

    `sparsity` is None where there is no packed weight; `runs` is False for one that only renames.
    """

    name: str
    op: str
    activation: str
    format: str
    sparsity: float | None
    operands: tuple[int | None, ...]
    output: int
    multiply_adds: int
    runs: bool


@dataclass(frozen=True)
class EngineFacts:
    """A model file. `bytes` are by kind: their sum is the file's; the arena is part of a context.

    The arena, shapes and the work are those of the example's batch. `most_batch` is the largest
    that a call may have; 0 where it is the example's.

    Example:
        >>> import sparseinfer, torch
        >>> model = torch.nn.Linear(8, 4).eval()
        >>> facts = sparseinfer.compile(model, torch.zeros(2, 8), baselines=()).facts()
        >>> sum(facts.bytes.values()) == facts.file_bytes, facts.totals["weights"]
        (True, 32)
        >>> facts.operators, facts.formats, facts.types
        (('linear',), ('panel',), ('float32',))
    """

    version: int
    file_bytes: int
    bytes: dict[str, int]
    arena_bytes: int
    context_bytes: int
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    tensors: tuple[TensorFacts, ...]
    nodes: tuple[NodeFacts, ...]
    most_batch: int = 0

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators of its nodes, by name: what a C library needs of SPARSEINFER_OPERATORS."""
        return tuple(sorted({node.op for node in self.nodes}))

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of its packed weights: what a C library needs of SPARSEINFER_FORMATS."""
        return tuple(sorted({tensor.format for tensor in self.tensors if tensor.format}))

    @property
    def types(self) -> tuple[str, ...]:
        """The types of its values: what a C library needs of SPARSEINFER_TYPES.

        Bytes between weights of int8 are int8's; ids and masks need none.
        """
        found = {"int8" if tensor.dtype == "uint8" else tensor.dtype for tensor in self.tensors}
        return tuple(sorted(found & {"float32", "float16", "bfloat16", "int8"}))

    @property
    def totals(self) -> dict[str, int]:
        """Counts over all nodes: those that run, packed weights, how many are kept, the work."""
        packed = [tensor for tensor in self.tensors if tensor.format]
        return {
            "nodes": sum(node.runs for node in self.nodes),
            "weights": sum(math.prod(tensor.shape) for tensor in packed),
            "nonzeros": sum(tensor.nnz or 0 for tensor in packed),
            "weight_bytes": self.bytes["packed weights"],
            "multiply_adds": sum(node.multiply_adds for node in self.nodes),
        }

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "totals": self.totals}


def facts_of(model: Model, file_bytes: int) -> EngineFacts:
    """The facts of an open model, whose file has so many bytes."""
    tensors = tuple(_tensor(tensor) for tensor in model.tensors)
    packed = sum(aligned_size(tensor.bytes) for tensor in tensors if tensor.format)
    plain = sum(
        aligned_size(tensor.bytes)
        for tensor in tensors
        if tensor.kind == "constant" and not tensor.format
    )
    golden = model.golden_bytes
    return EngineFacts(
        model.version, file_bytes,
        {
            "packed weights": packed, "other constants": plain,
            "golden inputs and outputs": golden,
            "header, graph and names": file_bytes - packed - plain - golden,
        },
        model.arena_bytes, model.context_bytes,
        tuple(map(_tensor, model.inputs)), tuple(map(_tensor, model.outputs)),
        tensors,
        tuple(_node(node) for node in model.nodes),
        model.most_batch,
    )  # fmt: skip


def _tensor(tensor: Mapping[str, Any]) -> TensorFacts:
    return TensorFacts(
        tensor["name"], tensor["kind"], tensor["dtype"], tuple(tensor["shape"]), tensor["bytes"],
        tensor["format"], tensor["nnz"] if tensor["format"] else None,
    )  # fmt: skip


def _node(node: Mapping[str, Any]) -> NodeFacts:
    return NodeFacts(
        node["name"], node["op"], node["activation"], node["format"], sparsity_of(node),
        tuple(node["operands"]), node["output"], node["multiply_adds"], node["runs"],
    )  # fmt: skip
