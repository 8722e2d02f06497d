"""Softmax between two products of computed matrices becomes the attention that it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.lowering.attention import MOST_HEAD_FEATURES
from sparseinfer.export.masks import is_causal, narrowed
from sparseinfer.export.passes.matching import Formula, number_of

__all__ = ["find_attention"]


MOST_MASK = 2**26
"""Elements of a mask that is told for all scores."""


@dataclass
class _Scores:
    """scale a b + masks: `product` multiplies a by b, and each mask is added as it is broadcast."""

    product: Node
    scale: float = 1.0
    masks: list[Value] = field(default_factory=list)


def find_attention(graph: Graph) -> None:
    """Let softmax(scale q k' + mask) v be attention, over `[batch, heads, tokens, features]`.

    Example:
        >>> q, k = Value("q", (1, 2, 5, 4)), Value("k", (1, 2, 4, 5))
        >>> a, p, y = Value("a", (1, 2, 5, 5)), Value("p", (1, 2, 5, 5)), Value("y", (1, 2, 5, 4))
        >>> nodes = [
        ...     Node("matmul", "", [q, k], a), Node("softmax", "", [a], p, {"axis": 3}),
        ...     Node("matmul", "", [p, q], y),
        ... ]
        >>> graph = Graph([q, k], nodes, [y])
        >>> find_attention(graph)
        >>> graph.nodes[-1].op, graph.nodes[-1].attributes
        ('attention', {'scale': 1.0, 'causal': False})
    """
    formula = Formula(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "matmul":
            nodes += _attention(node, formula)
        nodes.append(node)
    graph.nodes = nodes


def _attention(node: Node, formula: Formula) -> list[Node]:
    """Turn the last product into attention; gives the nodes that it needs before it."""
    probabilities, v = node.inputs
    assert probabilities is not None and v is not None
    softmax = _softmax(probabilities, formula)
    if softmax is None or softmax.inputs[0] is None:
        return []
    scores = _scores(softmax.inputs[0], formula)
    shape = softmax.output.shape
    if scores is None or scores.product.output.shape != shape or probabilities.shape != shape:
        return []
    before = _Before(node.name, node.output.name)
    q, turned = scores.product.inputs
    assert q is not None and turned is not None
    scale = scores.scale
    number, q = _scaled(q, formula)
    scale *= number
    number, turned = _scaled(turned, formula)
    scale *= number
    rank = len(shape)
    k = before.add("permute", turned, (*turned.shape[:-2], turned.shape[-1], turned.shape[-2]),
                   axes=[*range(rank - 2), rank - 1, rank - 2])  # fmt: skip
    if k.shape != v.shape or q.shape[-1] != k.shape[-1] or k.shape[-1] > MOST_HEAD_FEATURES:
        return []
    mask = _mask(scores.masks, shape, before)
    if scores.masks and mask is None:
        return []
    inputs: list[Value | None] = [before.heads(value) for value in (q, k, v)]
    causal = mask is not None and mask.constant is not None and is_causal(mask.constant)
    inputs.append(None if causal else mask)
    node.op, node.inputs = "attention", inputs
    node.attributes = {"scale": scale, "causal": causal}
    if rank == 3:
        return [*before.nodes, *before.split(node)]
    return before.nodes


class _Before:
    """Nodes that an attention needs before it."""

    def __init__(self, name: str, output: str) -> None:
        self.name, self.output = name, output
        self.nodes: list[Node] = []

    def add(self, op: str, x: Value, shape: tuple[int, ...], **attributes: object) -> Value:
        output = Value(f"{self.output} {op} {len(self.nodes)}", shape)
        self.nodes.append(Node(op, self.name, [x], output, attributes))
        return output

    def sum(self, a: Value, b: Value) -> Value:
        shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
        output = Value(f"{self.output} masks {len(self.nodes)}", shape)
        self.nodes.append(Node("binary", self.name, [a, b], output, {"kind": "add"}))
        return output

    def heads(self, x: Value) -> Value:
        """As one of four dimensions: of three, each matrix is a batch of one head."""
        return x if len(x.shape) == 4 else self.add("reshape", x, (x.shape[0], 1, *x.shape[1:]))

    def split(self, node: Node) -> list[Node]:
        """An attention of three dimensions computes four, and what follows is of three."""
        output = Value(f"{self.output} heads", (node.output.shape[0], 1, *node.output.shape[1:]))
        new = Node("attention", node.name, node.inputs, output, node.attributes)
        node.op, node.inputs, node.attributes = "reshape", [output], {}
        return [new]


def _softmax(value: Value, formula: Formula) -> Node | None:
    """The softmax over keys that a value is, with zeros where no key is seen."""
    zeros = formula.node(value, "zero_nan")
    node = formula.node(value if zeros is None else zeros.inputs[0], "softmax")
    if node is None or len(value.shape) not in (3, 4):
        return None
    return node if node.attributes["axis"] == len(value.shape) - 1 else None


def _scores(value: Value, formula: Formula) -> _Scores | None:
    """What softmax is taken of, read back to the product of queries and keys."""
    product = formula.node(value, "matmul")
    if product is not None:
        return _Scores(product)
    terms = formula.terms(value)
    if terms is not None:
        for inner, mask in (terms, terms[::-1]):
            found = _scores(inner, formula) if inner.shape == value.shape else None
            if found is not None:
                found.masks.append(mask)
                return found
        return None
    node = formula.node(value, "reshape")
    if node is not None and node.inputs[0] is not None:
        found = _scores(node.inputs[0], formula)
        return None if found is None else _reshaped(found, node.inputs[0].shape, value.shape)
    number, inner = _scaled(value, formula)
    found = None if inner is value else _scores(inner, formula)
    if found is None or found.masks:
        return None
    found.scale *= number
    return found


def _reshaped(scores: _Scores, before: tuple[int, ...], after: tuple[int, ...]) -> _Scores | None:
    """The masks of other scores than those that are read: constants are told for these."""
    if any(mask.constant is None for mask in scores.masks) or math.prod(after) > MOST_MASK:
        return None
    for index, mask in enumerate(scores.masks):
        assert mask.constant is not None
        whole = mask.constant.expand(before).reshape(after)
        scores.masks[index] = Value(mask.name, after, whole)
    return scores


def _scaled(value: Value, formula: Formula) -> tuple[float, Value]:
    """A number and the tensor that it multiplies."""
    node = formula.node(value, "binary")
    if node is None or node.activation != "none" or node.attributes["kind"] not in (
        "multiply", "divide",
    ):  # fmt: skip
        return 1.0, value
    a, b = node.inputs
    assert a is not None and b is not None
    divides = node.attributes["kind"] == "divide"
    for x, other in ((a, b),) if divides else ((a, b), (b, a)):
        number = number_of(other)
        if number and x.shape == value.shape:
            return (1 / number if divides else number), x
    return 1.0, value


def _mask(masks: list[Value], shape: tuple[int, ...], before: _Before) -> Value | None:
    """The sum of masks in four dimensions, as long as the keys; None for none."""
    known, computed = None, None
    for mask in masks:
        if mask.constant is not None:
            whole = _four(mask.constant, shape)
            known = whole if known is None else known + whole
            continue
        if mask.shape[-1:] != shape[-1:]:
            return None
        dims = (1,) * (4 - len(shape)) + (1,) * (len(shape) - len(mask.shape)) + mask.shape
        if len(shape) == 3:
            dims = (dims[1], 1, *dims[2:])
        own = mask if mask.shape == dims else before.add("reshape", mask, dims)
        computed = own if computed is None else before.sum(computed, own)
    if known is None:
        return computed
    constant = Value(f"{before.output} mask", tuple(known.shape), known)
    return constant if computed is None else before.sum(computed, constant)


def _four(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A constant mask in four dimensions, one element where all along one is the same."""
    mask = mask.float().reshape((1,) * (len(shape) - mask.dim()) + tuple(mask.shape))
    if len(shape) == 3:
        mask = mask.unsqueeze(1)
    return narrowed(mask.expand(*mask.shape[:3], shape[-1]), 3).contiguous()
