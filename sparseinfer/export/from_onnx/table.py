"""THE table of ONNX operators, and what a function in it is given: a `Call`.

The function returns the value that the operator gives, or a tuple of them, after adding nodes; it
raises `Refusal` with the reason where the engine has no such operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.lower import lower
from sparseinfer.export.lowering import Call as AtenCall
from sparseinfer.export.lowering import Refusal
from sparseinfer.export.masks import Choice
from sparseinfer.export.passes.quantize import SAME_SCALE
from sparseinfer.quantize.activations import ActivationScale

__all__ = ["OPERATORS", "Call", "Converter", "Refusal", "converts"]

LARGEST = 2**31
"""No number of a file is that large."""


@dataclass
class Call:
    """One node of an ONNX model: what it reads, and the shape of its first output.

    `node` is of onnx_ir. An input that is left out is None.
    """

    graph: Graph
    node: Any
    inputs: Sequence[Any]
    shape: tuple[int, ...]
    opset: int

    @property
    def name(self) -> str:
        """Of the tensor that it gives."""
        return self.node.outputs[0].name

    @property
    def path(self) -> str:
        """What the node is called."""
        return self.node.name or self.name

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of the type of its default: a number, a text or a list of integers."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        value = found.value
        if isinstance(default, str):
            right = isinstance(value, str)
        elif isinstance(default, int | float):
            right = isinstance(value, type(default)) and abs(value) < LARGEST
        else:
            right = not isinstance(value, str) and all(
                isinstance(part, int) and abs(part) < LARGEST for part in value
            )
        if not right:
            raise Refusal(f"its {name} is {value!r}")
        return value

    def optional(self, index: int) -> Any:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def value(self, index: int) -> Value:
        """An input that has to be a tensor of float32, computed or constant."""
        found = self.optional(index)
        if not isinstance(found, Value):
            raise Refusal(f"expected a tensor as input {index}")
        if found.dtype != torch.float32:
            raise Refusal(f"expected float32 as input {index}, got {found.dtype}")
        return found

    def passed(self, index: int) -> Value:
        """A tensor of any type, of an operator that does not look at elements."""
        found = self.optional(index)
        if not isinstance(found, Value):
            raise Refusal(f"expected a tensor as input {index}")
        return found

    def part(self, index: int) -> Value | Choice:
        """A tensor of any type, or a mask."""
        found = self.optional(index)
        return found if isinstance(found, Choice) else self.passed(index)

    def floats(self, index: int) -> Value | Choice:
        """A tensor of float32, or a mask that is read as one."""
        found = self.optional(index)
        return found if isinstance(found, Choice) else self.value(index)

    def computed(self, index: int) -> Value:
        """A tensor of float32 that is not constant."""
        found = self.value(index)
        if found.constant is not None:
            raise Refusal(f"expected a tensor that is computed as input {index}, got a constant")
        return found

    def constant(self, index: int) -> Value:
        """An input that the model holds, such as a weight."""
        found = self.optional(index)
        if not isinstance(found, Value) or found.constant is None:
            raise Refusal(f"expected a constant as input {index}")
        return found

    def weight(self, index: int) -> Value:
        """A constant of float32."""
        self.value(index)
        return self.constant(index)

    def numbers(self, index: int) -> list[Any] | None:
        """The elements of a constant input, such as axes; None: it is left out."""
        if self.optional(index) is None:
            return None
        constant = self.constant(index).constant
        assert constant is not None
        if constant.numel() > 1024:
            raise Refusal(f"expected a few numbers as input {index}")
        return constant.reshape(-1).tolist()

    def number(self, index: int, default: Any) -> Any:
        """A constant input of one element."""
        found = self.numbers(index)
        if found is not None and len(found) != 1:
            raise Refusal(f"expected one number as input {index}, got {len(found)}")
        return default if found is None else found[0]

    def axes(self, index: int, since: int) -> list[int] | None:
        """Axes, which are an input since that opset and an attribute before; none below 0."""
        given = self.numbers(index) if self.opset >= since else self.attribute("axes", None)
        if given is None:
            return None
        return sorted(self.axis(int(axis), len(self.inputs[0].shape)) for axis in given)

    def axis(self, axis: int, rank: int) -> int:
        """An axis of a tensor of so many dimensions, not below 0; a number has one."""
        rank = max(1, rank)
        if not -rank <= axis < rank:
            raise Refusal(f"its axis is {axis}, of {rank}")
        return axis % rank

    def only_first(self) -> None:
        """Refuse a node whose other outputs are read."""
        for own in self.node.outputs[1:]:
            if own.uses() or own.is_graph_output():
                raise Refusal(f"its output {own.name} is read, and the engine gives the first")

    def add(
        self, op: str, inputs: Sequence[Value | None], activation: str = "none",
        scale: ActivationScale | None = None, **attributes: Any,
    ) -> Value:  # fmt: skip
        """Add a node whose output is what the node gives: bytes of `scale`, where there is one."""
        source = inputs[0]
        if op in SAME_SCALE and source is not None:
            scale = source.scale
        return self.step(self.name, self.shape, op, inputs, activation, scale, **attributes)

    def aten(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operator of torch gives, by the table that torch models take."""
        given = _on_meta(target, args, kwargs)
        call = AtenCall(
            self.graph, f"{self.name} {target}", self.path, args, kwargs, tuple(given.shape),
            given.dtype,
        )  # fmt: skip
        return lower(target, call)

    def step(
        self, name: str, shape: tuple[int, ...], op: str, inputs: Sequence[Value | None],
        activation: str = "none", scale: ActivationScale | None = None, **attributes: Any,
    ) -> Value:  # fmt: skip
        """Add one node of several, whose output has a name and shape of its own."""
        output = Value(name, shape, None, torch.float32 if scale is None else torch.uint8, scale)
        self.graph.nodes.append(Node(op, self.path, list(inputs), output, attributes, activation))
        return output


def _on_meta(target: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """The shape and the type that an operator gives."""

    def empty(part: Any) -> Any:
        if isinstance(part, Choice):
            return part.if_zero.to("meta")
        if isinstance(part, Value):
            return torch.empty(part.shape, dtype=part.dtype, device="meta")
        return part

    found = target(*tree_map(empty, args), **tree_map(empty, kwargs))
    first: torch.Tensor = found[0] if isinstance(found, tuple | list) else found
    return first


Converter = Callable[[Call], Any]

OPERATORS: dict[str, Converter] = {}
"""THE table of operators that are taken, which the files beside this one fill."""


def converts(*names: str) -> Callable[[Converter], Converter]:
    """Enter a function in the table, for some operators.

    Example:
        >>> @converts("AnOperator")
        ... def convert(call):
        ...     return call.value(0)
        >>> OPERATORS.pop("AnOperator") is convert
        True
    """

    def enter(function: Converter) -> Converter:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return enter
