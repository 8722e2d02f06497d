"""What ties a model to one batch, done so that any may be: in dimension 0, and told once.

Exporters expand a class token, or the embeddings of positions, to the batch of the example. Where
an operator broadcasts, one sample of such a constant is enough. A concatenation broadcasts nothing:
there it is multiplied by ones, which are made of another operand: its elements to the power of 0,
which are 1 for NaN and Inf too.

Masks of windows are as many as the batch has windows, and repeat with each sample: they are
multiplied by ones in the same way, of an input that has the batch.

Models turn queries, keys and values before the batch to take one of the three: it is taken before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.passes.dead_code import remove_dead_code

__all__ = ["allow_any_batch", "repeat_masks", "select_before", "tell_once"]


def allow_any_batch(graph: Graph, batched: Sequence[Value] = ()) -> None:
    """All of what follows, and dead code goes. `batched`: the inputs whose batch may vary."""
    select_before(graph)
    tell_once(graph)
    repeat_masks(graph, batched)
    remove_dead_code(graph)


def select_before(graph: Graph) -> None:
    """Let one entry along an axis be taken before the axes are permuted, not after.

    Example:
        >>> x, turned = Value("x", (2, 5, 3)), Value("turned", (3, 2, 5))
        >>> part, y = Value("part", (1, 2, 5)), Value("y", (2, 5))
        >>> graph = Graph([x], [
        ...     Node("permute", "", [x], turned, {"axes": [2, 0, 1]}),
        ...     Node("slice", "", [turned], part, {"axis": 0, "start": 1, "step": 1}),
        ...     Node("reshape", "", [part], y),
        ... ], [y])
        >>> select_before(graph)
        >>> [(node.op, node.output.shape) for node in graph.nodes[2:]]
        [('slice', (2, 5, 1)), ('reshape', (2, 5)), ('permute', (2, 5))]
    """
    producers = graph.producers()
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _selected(node, producers) if node.op == "reshape" else [node]
    graph.nodes = nodes


def _selected(node: Node, producers: dict[Value, Node]) -> list[Node]:
    part = None if node.inputs[0] is None else producers.get(node.inputs[0])
    turn = None if part is None or part.inputs[0] is None else producers.get(part.inputs[0])
    if part is None or turn is None or part.op != "slice" or turn.op != "permute":
        return [node]
    axis, shape = part.attributes["axis"], part.output.shape
    x, axes = turn.inputs[0], turn.attributes["axes"]
    if x is None or shape[axis] != 1 or node.output.shape != (*shape[:axis], *shape[axis + 1 :]):
        return [node]
    own = axes[axis]
    name = node.output.name
    entry = Value(f"{name} entry", (*x.shape[:own], 1, *x.shape[own + 1 :]))
    whole = Value(f"{name} before", (*x.shape[:own], *x.shape[own + 1 :]))
    left = [at - (at > own) for at in axes if at != own]
    return [
        Node("slice", part.name, [x], entry, {**part.attributes, "axis": own}),
        Node("reshape", node.name, [entry], whole),
        Node("permute", turn.name, [whole], node.output, {"axes": left}),
    ]


def tell_once(graph: Graph) -> None:
    """Let no constant have as many elements as the batch asks for, where all samples have the same.

    Example:
        >>> x, y = Value("x", (2, 3)), Value("y", (2, 3))
        >>> row = Value("row", (2, 3), torch.ones(2, 3))
        >>> graph = Graph([x], [Node("binary", "", [x, row], y, {"kind": "add"})], [y])
        >>> tell_once(graph)
        >>> graph.nodes[0].inputs[1].shape
        (1, 3)
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op in ("binary", "where"):
            for place, value in enumerate(node.inputs):
                others = [*node.inputs[:place], *node.inputs[place + 1 :]]
                if value is not None and _is_given(node.output, others):
                    node.inputs[place] = _once(value, len(node.output.shape))
        elif node.op == "concat" and node.attributes["axis"] > 0:
            for place, value in enumerate(node.inputs):
                nodes += _spread(node, place, value)
        nodes.append(node)
    graph.nodes = nodes


def _is_given(output: Value, others: list[Value | None]) -> bool:
    """Whether the first dimension of an output is that of some other operand."""
    return any(
        other is not None and other.constant is None and other.shape[:1] == output.shape[:1]
        and len(other.shape) == len(output.shape)
        for other in others
    )  # fmt: skip


def _once(value: Value, rank: int) -> Value:
    """A constant with one sample, where all are the same."""
    whole = value.constant
    if whole is None or whole.dim() != rank or len(whole) < 2:
        return value
    first = whole[:1]
    if not torch.equal(first.expand_as(whole), whole):
        return value
    return Value(value.name, tuple(first.shape), first.contiguous())


def _spread(node: Node, place: int, value: Value | None) -> list[Node]:
    """A constant that is joined, as nodes of a part of what it is joined with."""
    axis, shape = node.attributes["axis"], node.output.shape
    if value is None or value.constant is None:
        return []
    once = _once(value, len(shape))
    size = value.shape[axis]
    other = next(
        (own for own in node.inputs if own is not None and own.constant is None
         and own.shape[axis] >= size), None,
    )  # fmt: skip
    if other is None or len(once.shape) != len(shape) or once.shape[0] != 1:
        return []
    name = f"{node.output.name} {value.name}"
    steps = [Value(f"{name} {step}", value.shape) for step in ("part", "ones", "samples")]
    zero = Value(f"{name} zero", (), torch.zeros(()))
    node.inputs[place] = steps[2]
    return [
        Node("slice", node.name, [other], steps[0], {"axis": axis, "start": 0, "step": 1}),
        Node("binary", node.name, [steps[0], zero], steps[1], {"kind": "power"}),
        Node("binary", node.name, [steps[1], once], steps[2], {"kind": "multiply"}),
    ]


def repeat_masks(graph: Graph, batched: Sequence[Value]) -> None:
    """Let a constant mask of attention that repeats with the samples be told for one of them.

    Example:
        >>> x, q, y = Value("x", (2, 6)), Value("q", (6, 1, 2, 1)), Value("y", (6, 1, 2, 1))
        >>> windows = torch.arange(12.0).view(3, 1, 2, 2)
        >>> mask = Value("mask", (6, 1, 2, 2), windows.repeat(2, 1, 1, 1))
        >>> graph = Graph([x], [Node("attention", "", [q, q, q, mask], y)], [y])
        >>> repeat_masks(graph, [x])
        >>> [(node.op, node.output.shape) for node in graph.nodes[2:-1]]
        [('binary', (2, 1, 1)), ('binary', (2, 3, 4)), ('reshape', (6, 1, 2, 2))]
    """
    source = next((x for x in batched if x.dtype == torch.float32 and len(x.shape) > 1), None)
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "attention" and source is not None:
            nodes += _repeated(node, source)
        nodes.append(node)
    graph.nodes = nodes


def _repeated(node: Node, source: Value) -> list[Node]:
    """The mask of an attention by nodes, of ones that an input gives and of one sample's."""
    mask = node.inputs[3]
    batch = source.shape[0]
    if mask is None or mask.constant is None:
        return []
    count = mask.shape[0]
    if count == 1 or count != node.output.shape[0] or count % batch:
        return []
    own = mask.constant.view(batch, count // batch, -1)
    if not torch.equal(own[:1].expand_as(own), own):
        return []
    name = f"{node.output.name} mask"
    shapes = [(batch, 1, torch.Size(source.shape[1:]).numel()), (batch, 1, 1), (batch, 1, 1),
              tuple(own.shape), mask.shape]  # fmt: skip
    steps = [
        Value(f"{name} {step}", shape)
        for step, shape in zip(("input", "part", "ones", "samples", "whole"), shapes, strict=True)
    ]
    zero = Value(f"{name} zero", (), torch.zeros(()))
    once = Value(mask.name, (1, *own.shape[1:]), own[:1].contiguous())
    node.inputs[3] = steps[4]
    return [
        Node("reshape", node.name, [source], steps[0]),
        Node("slice", node.name, [steps[0]], steps[1], {"axis": 2, "start": 0, "step": 1}),
        Node("binary", node.name, [steps[1], zero], steps[2], {"kind": "power"}),
        Node("binary", node.name, [steps[2], once], steps[3], {"kind": "multiply"}),
        Node("reshape", node.name, [steps[3]], steps[4]),
    ]
