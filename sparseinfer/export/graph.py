"""The graph of a network: small, typed, and printed as it will run.

A `Value` is a tensor, given from outside, constant or computed by one node. A `Node` is one
operation with one output. Nodes stand in the order in which they run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparseinfer.quantize.activations import ActivationScale

__all__ = ["MOST_COLUMNS", "MOST_DIMS", "Graph", "Node", "Value", "copied"]

MOST_DIMS = 8
"""Of a tensor in a file."""

MOST_COLUMNS = 2**17
"""Of an image that is pooled, or padded for a depthwise convolution: a row of it is scratch."""


@dataclass(eq=False)
class Value:
    """A tensor of the graph; `constant` holds the elements of one that does not change.

    `scale` tells what the bytes of one of uint8 stand for, `weight_scales` `[M]` by which numbers a
    row a weight of float32 was quantised before. `most_batch` is the largest batch of an input
    whose dimension 0 is one that may vary, else 0. `rows` is how many a
    table has that an input of ids is looked up in, else 0.

    Example:
        >>> str(Value("x", (1, 3)))
        'x[1, 3]'
    """

    name: str
    shape: tuple[int, ...]
    constant: Tensor | None = None
    dtype: torch.dtype = torch.float32
    scale: ActivationScale | None = None
    weight_scales: Tensor | None = None
    most_batch: int = 0
    rows: int = 0

    def __str__(self) -> str:
        kind = "" if self.dtype == torch.float32 else f" {self.dtype}".replace("torch.", "")
        return f"{self.name}{list(self.shape)}{kind}"


@dataclass(eq=False)
class Node:
    """One operation. `name` is the path of the module that it comes from.

    Operands that it does without are None. `activation` is applied to its output, by the names of
    `sparseinfer.kernels.activations`.

    Example:
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> str(Node("add", "block", [x, x], y, activation="relu"))
        'y[2] = relu(add(x, x))  # block'
    """

    op: str
    name: str
    inputs: list[Value | None]
    output: Value
    attributes: dict[str, Any] = field(default_factory=dict)
    activation: str = "none"

    def __str__(self) -> str:
        parts = ["-" if value is None else value.name for value in self.inputs]
        parts += [f"{key}={value}" for key, value in self.attributes.items()]
        call = f"{self.op}({', '.join(parts)})"
        if self.activation != "none":
            call = f"{self.activation}({call})"
        return f"{self.output} = {call}  # {self.name}"


@dataclass
class Graph:
    """Inputs, nodes in the order in which they run, and outputs.

    Example:
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> print(Graph([x], [Node("add", "block", [x, x], y)], [y]))
        inputs x[2]
        y[2] = add(x, x)  # block
        outputs y[2]
    """

    inputs: list[Value]
    nodes: list[Node]
    outputs: list[Value]

    def __str__(self) -> str:
        return "\n".join([
            f"inputs {', '.join(map(str, self.inputs))}",
            *map(str, self.nodes),
            f"outputs {', '.join(map(str, self.outputs))}",
        ])  # fmt: skip

    def producers(self) -> dict[Value, Node]:
        """The node that computes each value."""
        return {node.output: node for node in self.nodes}

    def uses(self) -> dict[Value, int]:
        """How often each value is read, by nodes and as an output."""
        count: dict[Value, int] = {}
        for value in (*_operands(self.nodes), *self.outputs):
            count[value] = count.get(value, 0) + 1
        return count

    def replace(self, old: Value, new: Value) -> None:
        """Let everything that reads `old` read `new`."""
        for node in self.nodes:
            node.inputs = [new if value is old else value for value in node.inputs]
        self.outputs = [new if value is old else value for value in self.outputs]

    def remove(self, nodes: Iterable[Node]) -> None:
        """Take nodes out; nothing may read their outputs any more."""
        gone = set(map(id, nodes))
        self.nodes = [node for node in self.nodes if id(node) not in gone]


def copied(graph: Graph) -> Graph:
    """The graph with nodes of its own, and the same values.

    Example:
        >>> x, y = Value("x", (2,)), Value("y", (2,))
        >>> graph = Graph([x], [Node("add", "", [x, x], y)], [y])
        >>> again = copied(graph)
        >>> again.nodes[0] is graph.nodes[0], again.nodes[0].output is y
        (False, True)
    """
    nodes = [copy.copy(node) for node in graph.nodes]
    for node in nodes:
        node.inputs = list(node.inputs)
    return Graph(list(graph.inputs), nodes, list(graph.outputs))


def _operands(nodes: Iterable[Node]) -> Iterable[Value]:
    return (value for node in nodes for value in node.inputs if value is not None)
