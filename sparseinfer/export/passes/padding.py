"""Zeros that are put around an image become the padding of the convolution that reads it."""

from __future__ import annotations

from sparseinfer.export.graph import Graph

__all__ = ["fold_padding"]


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
