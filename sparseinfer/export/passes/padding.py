"""Zeros that are put around an image become the padding of the convolution that reads it.

What is put around an image that others read is joined to it, and what is cut off is a slice.
"""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["fold_padding", "spell_padding"]

MOST_TIMES = 64
"""What is put before or after an image, of its own size: a few bytes of a file name any number."""


def fold_padding(graph: Graph) -> None:
    """Fold paddings by zeros into convolutions; those that others read too stay.

    Example:
        >>> from sparseinfer.export.graph import Node, Value
        >>> x, padded, w, y = (Value(n, (1, 1, 4, 4)) for n in "xpwy")
        >>> pad = Node("pad", "", [x], padded, {"padding": [0, 1, 0, 1], "fill": 0.0})
        >>> conv = Node("conv", "", [padded, w, None], y, {"padding": [1, 1, 1, 1]})
        >>> fold_padding(Graph([x], [pad, conv], [y]))
        >>> conv.inputs[0].name, conv.attributes["padding"]
        ('x', [1, 2, 1, 2])
    """
    producers = graph.producers()
    for node in graph.nodes:
        source = node.inputs[0]
        pad = None if source is None else producers.get(source)
        if node.op != "conv" or pad is None or pad.op != "pad":
            continue
        ends = pad.attributes["padding"]
        if pad.attributes["fill"] == 0 and min(ends) >= 0:
            node.inputs[0] = pad.inputs[0]
            both = zip(node.attributes["padding"], ends, strict=True)
            node.attributes["padding"] = [own + more for own, more in both]
    uses = graph.uses()
    graph.remove(node for node in graph.nodes if node.op == "pad" and node.output not in uses)


def spell_padding(graph: Graph) -> None:
    """Let paddings that are left be concatenations and slices.

    Example:
        >>> x, y = Value("x", (1, 1, 4, 4)), Value("y", (1, 1, 4, 7))
        >>> pad = Node("pad", "", [x], y, {"padding": [0, 0, 1, 2], "fill": 0.0})
        >>> graph = Graph([x], [pad], [y])
        >>> spell_padding(graph)
        >>> graph.nodes[-1].op, graph.nodes[-1].output.shape
        ('concat', (1, 1, 4, 7))
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _spelled(node) if node.op == "pad" and _is_small(node) else [node]
    graph.nodes = nodes


def _is_small(node: Node) -> bool:
    x, ends = node.inputs[0], node.attributes["padding"]
    assert x is not None
    return max(ends[:2]) <= MOST_TIMES * x.shape[-2] and max(ends[2:]) <= MOST_TIMES * x.shape[-1]


def _spelled(node: Node) -> list[Node]:
    x, given = node.inputs[0], node.attributes
    assert x is not None
    rank = len(x.shape)
    fill = Value(f"{node.output.name} fill", (), torch.tensor(float(given["fill"])))
    nodes: list[Node] = []

    def add(
        op: str, inputs: list[Value | None], along: int, size: int, **attributes: object
    ) -> Value:
        assert x is not None
        shape = (*x.shape[:along], size, *x.shape[along + 1 :])
        output = Value(f"{node.output.name} {op} {len(nodes)}", shape)
        nodes.append(Node(op, node.name, inputs, output, attributes))
        return output

    def filled(axis: int, count: int) -> list[Value]:
        """Parts of the image that are clamped to one number: so they have its batch."""
        assert x is not None
        parts = []
        while count > 0:
            size = min(count, x.shape[axis])
            part = add("slice", [x], axis, size, axis=axis, start=0, step=1)
            above = add("binary", [part, fill], axis, size, kind="maximum")
            parts.append(add("binary", [above, fill], axis, size, kind="minimum"))
            count -= size
        return parts

    for axis, ends in ((rank - 2, given["padding"][:2]), (rank - 1, given["padding"][2:])):
        less = [max(0, -end) for end in ends]
        if any(less):
            size = x.shape[axis] - sum(less)
            x = add("slice", [x], axis, size, axis=axis, start=less[0], step=1)
        before, after = (filled(axis, end) for end in ends)
        parts: list[Value | None] = [*before, x, *after]
        if len(parts) > 1:
            size = sum(part.shape[axis] for part in parts if part is not None)
            x = add("concat", parts, axis, size, axis=axis)
    nodes[-1].output = node.output
    return nodes
