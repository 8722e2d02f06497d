"""Reshapes and permutes in a row become one of each at most, or nothing."""

from __future__ import annotations

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.views import View, joined, view_of

__all__ = ["simplify_views", "sink_views"]


def simplify_views(graph: Graph) -> None:
    """Let every reshape and permute read what was last computed before it.

    Example:
        >>> x, y, z = Value("x", (2, 3)), Value("y", (3, 2)), Value("z", (2, 3))
        >>> turn = {"axes": [1, 0]}
        >>> nodes = [Node("permute", "", [x], y, turn), Node("permute", "", [y], z, turn)]
        >>> graph = Graph([x], nodes, [z])
        >>> simplify_views(graph)
        >>> graph.nodes[1].op, graph.nodes[1].inputs[0] is x
        ('reshape', True)
    """
    producers, batch = graph.producers(), _batch_of_one(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        view = view_of(node.output, producers)
        # Of itself: it is no move, or one that has no strides.
        if view.source is node.output:
            nodes.append(node)
        else:
            nodes += _moved(view, node.output, node.name, batch)
    graph.nodes = nodes


def _batch_of_one(graph: Graph) -> tuple[int, ...]:
    """The dimension before all others where the batch may vary, and is 1 in this graph."""
    return (1,) if any(own.most_batch and own.shape[0] == 1 for own in graph.inputs) else ()


def _moved(view: View, output: Value, name: str, batch: tuple[int, ...]) -> list[Node]:
    """The fewest nodes that make a tensor of the source of its view.

    `batch` is a dimension that stays before the others, of one element for now.
    """
    source = view.source
    if view.is_whole():
        return [Node("reshape", name, [source], output)]
    factors = view.factors()
    stored = sorted(factors, key=lambda factor: -factor[1])
    nodes = []
    cut = (*batch, *(size for size, _ in stored))
    if cut != source.shape:
        split = Value(f"{output.name} split", cut, dtype=output.dtype)
        nodes.append(Node("reshape", name, [source], split))
        source = split
    turned = (*batch, *(size for size, _ in factors))
    whole = turned == output.shape
    target = output if whole else Value(f"{output.name} turned", turned, dtype=output.dtype)
    axes = [*range(len(batch)), *(stored.index(factor) + len(batch) for factor in factors)]
    nodes.append(Node("permute", name, [source], target, {"axes": axes}))
    if not whole:
        nodes.append(Node("reshape", name, [target], output))
    return nodes


def sink_views(graph: Graph) -> None:
    """Let linear layers compute tokens in the order in which they stand, and move their output.

    Torch's attention turns its tokens around before its projections, and back after them; other
    models make rows of them. In the other order the results are the same, and the moves meet.

    Example:
        >>> x, t = Value("x", (2, 3, 4)), Value("t", (3, 2, 4))
        >>> w, y = Value("w", (5, 4)), Value("y", (3, 2, 5))
        >>> turn = Node("permute", "", [x], t, {"axes": [1, 0, 2]})
        >>> graph = Graph([x], [turn, Node("linear", "fc", [t, w, None], y)], [y])
        >>> sink_views(graph)
        >>> [str(node.output) for node in graph.nodes if node.op == "linear"]
        ['y before[2, 3, 5]']
    """
    nodes: list[Node] = []
    producers, batch = graph.producers(), _batch_of_one(graph)
    for node in graph.nodes:
        source = node.inputs[0]
        if node.op == "linear" and source is not None:
            nodes += _sunk(node, view_of(source, producers), batch)
        else:
            nodes.append(node)
        producers.update((new.output, new) for new in nodes[-4:])
    graph.nodes = nodes


def _sunk(node: Node, view: View, batch: tuple[int, ...]) -> list[Node]:
    source, output = view.source, node.output
    if source is node.inputs[0] or len(node.inputs) > 3 or not source.shape:
        return [node]
    columns = source.shape[-1]
    if joined(view.axes[-1]) != [(columns, 1)]:
        return [node]
    before = Value(f"{output.name} before", (*source.shape[:-1], output.shape[-1]))
    node.inputs[0], node.output = source, before
    # The rows stand as before, and each has as many columns as the output.
    scale = output.shape[-1]
    rows = tuple(
        tuple((size, step // columns * scale) for size, step in axis) for axis in view.axes[:-1]
    )
    return [node, *_moved(View(before, (*rows, ((scale, 1),))), output, node.name, batch)]
