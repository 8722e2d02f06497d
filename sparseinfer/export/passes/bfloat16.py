"""What only weighted nodes read is bfloat16: they would round it so themselves.

Attention rounds what it multiplies.
"""

from __future__ import annotations

import torch

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["is_paired", "narrow_values", "round_attention"]

MOST_COLUMNS = 65535
"""Of a panel; weights of more are csr, whose kernels compute in float32."""


def is_paired(node: Node) -> bool:
    """Whether the weight of a node becomes pairs of bfloat16.

    Example:
        >>> x, w, y = Value("x", (2, 4)), Value("w", (3, 4), torch.ones(3, 4)), Value("y", (2, 3))
        >>> is_paired(Node("linear", "", [x, w, None], y)), is_paired(Node("add", "", [x, x], y))
        (True, False)
    """
    if node.op not in ("linear", "conv"):
        return False
    weight = node.inputs[1]
    assert weight is not None and weight.constant is not None
    return weight.constant[0].numel() <= MOST_COLUMNS


def round_attention(graph: Graph) -> None:
    """Let attention round what it multiplies to bfloat16, where the processor multiplies that.

    Sums and the exponentials stay float32. What surrounds it, weights of int8 or bfloat16, is
    rounded by more.

    Example:
        >>> q, y = Value("q", (1, 5, 8)), Value("y", (1, 5, 8))
        >>> graph = Graph([q], [Node("attention", "", [q, q, q, None], y)], [y])
        >>> round_attention(graph)
        >>> graph.nodes[0].attributes
        {'rounds': True}
    """
    for node in graph.nodes:
        if node.op == "attention":
            node.attributes["rounds"] = True


def narrow_values(graph: Graph) -> None:
    """Let values between nodes of bfloat16 weights be bfloat16: half of the bytes, and as they are.

    A node that adds a residual gives float32.

    Example:
        >>> w = Value("w", (3, 3), torch.ones(3, 3))
        >>> x, y, z = Value("x", (2, 3)), Value("y", (2, 3)), Value("z", (2, 3))
        >>> nodes = [Node("linear", "a", [x, w, None], y), Node("linear", "b", [y, w, None], z)]
        >>> graph = Graph([x], nodes, [z])
        >>> narrow_values(graph)
        >>> print(graph)
        inputs x[2, 3]
        y[2, 3] bfloat16 = linear(x, w, -)  # a
        z[2, 3] = linear(y, w, -)  # b
        outputs z[2, 3]
    """
    wide = set(graph.outputs)
    for node in graph.nodes:
        reads_first = is_paired(node)
        wide.update(
            value for at, value in enumerate(node.inputs)
            if value is not None and not (reads_first and at == 0)
        )  # fmt: skip
    for node in graph.nodes:
        adds = len(node.inputs) > 3 and node.inputs[3] is not None
        if not is_paired(node) or adds or node.output in wide:
            continue
        old = node.output
        node.output = Value(old.name, old.shape, None, torch.bfloat16)
        graph.replace(old, node.output)
