"""Attention reads the heads of its tokens where projections put them, and gives tokens.

Models cut the features of a token into heads and turn these to the front. The engine's attention
reads `[batch, tokens, features]`, or tokens before batches, of which the heads are a range: what
was turned is read with its strides, and what stands elsewhere is brought there.
"""

from __future__ import annotations

import math

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.views import view_of

__all__ = ["place_attention"]

ORDERS = (0, 1)
"""Batches before tokens, or tokens before batches."""


def place_attention(graph: Graph) -> None:
    """Let attention over heads be attention over tokens; permutes of before and after meet.

    Example:
        >>> q, heads = Value("q", (1, 5, 8)), Value("heads", (1, 5, 2, 4))
        >>> turned, y = Value("turned", (1, 2, 5, 4)), Value("y", (1, 2, 5, 4))
        >>> given = {"scale": 0.5, "causal": False}
        >>> nodes = [
        ...     Node("reshape", "", [q], heads),
        ...     Node("permute", "", [heads], turned, {"axes": [0, 2, 1, 3]}),
        ...     Node("attention", "", [turned, turned, turned, None], y, given),
        ... ]
        >>> graph = Graph([q], nodes, [y])
        >>> place_attention(graph)
        >>> [value and value.name for value in graph.nodes[2].inputs], graph.nodes[2].output.shape
        (['q', 'q', 'q', None], (1, 5, 8))
    """
    producers = graph.producers()
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _placed(node, producers) if node.op == "attention" else [node]
    graph.nodes = nodes


def _placed(node: Node, producers: dict[Value, Node]) -> list[Node]:
    batch, heads, queries, features = node.output.shape
    found = [[_tokens(value, producers, order) for value in node.inputs[:3]] for order in ORDERS]
    order = next((order for order, all in zip(ORDERS, found, strict=True) if None not in all), 0)
    axes = [2, 0, 1, 3] if order else [0, 2, 1, 3]
    before: list[Node] = []
    first = []
    for place, own in enumerate(found[order]):
        value = node.inputs[place]
        assert value is not None
        if own is None:
            turned = Value(f"{value.name} turned", tuple(value.shape[axis] for axis in axes))
            before.append(Node("permute", node.name, [value], turned, {"axes": axes}))
            own = turned, (turned.shape[0], turned.shape[1], heads * features), 0
        source, shape, start = own
        if source.shape != shape:
            tokens = Value(f"{value.name} tokens {place}", shape)
            before.append(Node("reshape", node.name, [source], tokens))
            source = tokens
        node.inputs[place] = source
        first.append(start)
    output = node.output
    ends = (queries, batch) if order else (batch, queries)
    node.output = Value(f"{output.name} tokens", (*ends, heads * features))
    node.attributes |= {
        "heads": heads, "features": features, "first": first, "tokens_first": bool(order),
    }  # fmt: skip
    apart = Value(f"{output.name} apart", (*ends, heads, features))
    back = [1, 2, 0, 3] if order else [0, 2, 1, 3]
    return [
        *before, node,
        Node("reshape", node.name, [node.output], apart),
        Node("permute", node.name, [apart], output, {"axes": back}),
    ]  # fmt: skip


def _tokens(
    value: Value | None, producers: dict[Value, Node], tokens_first: int
) -> tuple[Value, tuple[int, int, int], int] | None:
    """What holds the heads by tokens, its shape so, and where in a token they begin."""
    assert value is not None
    view = view_of(value, producers, cuts=True)
    strides = view.strides()
    batch, heads, tokens, features = value.shape
    elements = math.prod(view.source.shape)
    if strides is None or elements % (batch * tokens) != 0:
        return None
    width = elements // (batch * tokens)
    wanted = [tokens * width, features, width, 1]
    if tokens_first:
        wanted = [width, features, batch * width, 1]
    fits = all(
        size == 1 or step == want
        for size, step, want in zip(value.shape, strides, wanted, strict=True)
    )
    if not fits or view.offset + heads * features > width:
        return None
    ends = (tokens, batch) if tokens_first else (batch, tokens)
    return view.source, (*ends, width), view.offset
