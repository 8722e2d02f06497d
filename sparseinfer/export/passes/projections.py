"""What attention reads of one tensor is projected at once: its tokens are brought into place once.

Queries, keys and values that three linear layers compute of the same tokens are the rows of one
layer, as torch's own attention keeps them; attention reads each where it begins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["merge_projections"]


def merge_projections(graph: Graph) -> None:
    """Merge linear layers of one input whose outputs one attention reads, and nothing else.

    Example:
        >>> x, y = Value("x", (1, 2, 4)), Value("y", (1, 2, 4))
        >>> weight = Value("w", (4, 4), torch.ones(4, 4))
        >>> parts = [Value(name, (1, 2, 4)) for name in "qkv"]
        >>> nodes = [Node("linear", name.name, [x, weight, None], name) for name in parts]
        >>> given = {"heads": 1, "features": 4, "first": [0, 0, 0]}
        >>> graph = Graph([x], [*nodes, Node("attention", "", [*parts, None], y, given)], [y])
        >>> merge_projections(graph)
        >>> [str(node.output) for node in graph.nodes], graph.nodes[1].attributes["first"]
        (['q, k, v[1, 2, 12]', 'y[1, 2, 4]'], [0, 4, 8])
    """
    for node in [node for node in graph.nodes if node.op == "attention"]:
        producers, uses = graph.producers(), graph.uses()
        parts: dict[Value, list[int]] = {}
        for place, value in enumerate(node.inputs[:3]):
            layer = None if value is None else producers.get(value)
            if value is not None and layer is not None and _takes(layer) and uses[value] == 1:
                assert layer.inputs[0] is not None
                parts.setdefault(layer.inputs[0], []).append(place)
        for places in parts.values():
            if len(places) > 1:
                _merge(graph, node, places, producers)


def _takes(node: Node) -> bool:
    return node.op == "linear" and node.activation == "none" and len(node.inputs) == 3


def _merge(graph: Graph, node: Node, places: list[int], producers: dict[Value, Node]) -> None:
    read = [node.inputs[place] for place in places]
    layers = [producers[value] for value in read if value is not None]
    rows = [layer.output.shape[-1] for layer in layers]
    weights = [layer.inputs[1] for layer in layers]
    weight = torch.cat([value.constant for value in weights if value is not None])  # type: ignore[misc]
    biases = [_bias(layer) for layer in layers]
    bias = torch.cat(biases) if any(layer.inputs[2] is not None for layer in layers) else None
    x = layers[0].inputs[0]
    assert x is not None
    name = ", ".join(layer.name for layer in layers)
    whole = Value(", ".join(layer.output.name for layer in layers), (*x.shape[:-1], int(sum(rows))))
    merged = Node(
        "linear", name,
        [
            x, Value(f"{name} weight", tuple(weight.shape), weight),
            None if bias is None else Value(f"{name} bias", tuple(bias.shape), bias),
        ],
        whole,
    )  # fmt: skip
    graph.nodes[graph.nodes.index(layers[0])] = merged
    graph.remove(layers[1:])
    first = list(node.attributes["first"])
    start = 0
    for place, size in zip(places, rows, strict=True):
        node.inputs[place] = whole
        first[place] += start
        start += size
    node.attributes = {**node.attributes, "first": first}


def _bias(layer: Node) -> Tensor:
    given = layer.inputs[2]
    if given is None:
        weight = layer.inputs[1]
        assert weight is not None and weight.constant is not None
        return torch.zeros(weight.shape[0], dtype=weight.constant.dtype)
    assert given.constant is not None
    return given.constant
