"""Batch norms become part of the layer before them, or a depthwise convolution of their own.

With s = scale / sqrt(variance + eps), conv(x, W, b) normalised is conv(x, s W, s (b - mean) +
shift). It is computed in float64 and rounded once. Exporters have folded wrongly and nobody
noticed, so each fold is tried on numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.export.graph import Graph, Node, Value

__all__ = ["fold_batch_norms"]

ROUNDING = 2.0**-22
"""Of a folded weight or bias, relative to its terms: each is rounded once, by half of that."""


def fold_batch_norms(graph: Graph) -> None:
    """Fold every batch norm.

    Raises:
        RuntimeError: a folded convolution does not compute what the two did.
    """
    for node in [node for node in graph.nodes if node.op == "batch_norm"]:
        producers, uses = graph.producers(), graph.uses()
        source = node.inputs[0]
        assert source is not None
        conv = producers.get(source)
        scale, shift = _affine(node)
        if conv is not None and uses[source] == 1 and _takes(conv):
            _fold(conv, scale, shift, node)
            conv.output = node.output
            graph.remove([node])
        else:
            _stand_alone(graph, node, scale, shift)


def _takes(node: Node) -> bool:
    """Whether its output has its rows as channels, the second axis, and nothing after its sum."""
    rows = node.op == "conv" or (node.op == "linear" and len(node.output.shape) == 2)
    return rows and node.activation == "none"


def _affine(node: Node) -> tuple[Tensor, Tensor]:
    """Scale and shift a channel, in float64."""
    given = [None if v is None or v.constant is None else v.constant.double() for v in node.inputs]
    scale, shift, mean, variance = given[1:]
    assert mean is not None and variance is not None
    factor = (variance + node.attributes["eps"]).rsqrt()
    if scale is not None:
        factor = factor * scale
    offset = -mean * factor
    return factor, offset if shift is None else offset + shift


def _fold(conv: Node, scale: Tensor, shift: Tensor, norm: Node) -> None:
    weight, bias = conv.inputs[1], conv.inputs[2]
    assert weight is not None and weight.constant is not None
    before = torch.zeros_like(shift) if bias is None else bias.constant.double()  # type: ignore[union-attr]
    folded = weight.constant.double() * scale.view(-1, *[1] * (weight.constant.dim() - 1))
    moved = before * scale + shift
    new = (
        Value(f"{weight.name} folded", weight.shape, folded.float()),
        Value(f"{weight.name} folded bias", tuple(moved.shape), moved.float()),
    )
    _check(weight.constant, before, norm, new)
    conv.inputs[1:3] = new


def _check(weight: Tensor, bias: Tensor, norm: Node, new: tuple[Value, Value]) -> None:
    """Compare torch's batch norm of the convolution at one position with the folded one."""
    rows = weight.double().flatten(1)
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(rows.shape[1], 4, generator=generator, dtype=torch.float64, device=rows.device)
    scale, shift, mean, variance = (
        None if v is None or v.constant is None else v.constant.double() for v in norm.inputs[1:]
    )
    y = (rows @ x + bias[:, None]).t()
    exact = F.batch_norm(y, mean, variance, scale, shift, False, 0.0, norm.attributes["eps"])
    folded, moved = (value.constant.double() for value in new)  # type: ignore[union-attr]
    got = (folded.flatten(1) @ x + moved[:, None]).t()
    factor, offset = _affine(norm)
    terms = (rows.abs() @ x.abs() + bias.abs()[:, None]).t() * factor.abs() + offset.abs()
    if not ((got - exact).abs() <= ROUNDING * terms).all():
        raise RuntimeError(
            f"expected the batch norm of {norm.name!r} folded into {new[0].name!r} to compute what "
            f"the two did, got a difference of {(got - exact).abs().max():.3g}; try a model whose "
            "running statistics are finite"
        )


def _stand_alone(graph: Graph, node: Node, scale: Tensor, shift: Tensor) -> None:
    """A batch norm that follows no convolution is a depthwise one of one tap.

    Of what is no image it is a factor and a term.
    """
    source = node.inputs[0]
    assert source is not None
    channels, rank = len(scale), len(source.shape)
    if rank != 4:
        shape = (channels, *[1] * (rank - 2))
        factor, term = (
            Value(f"{node.name} {name}", shape, own.float().view(shape))
            for name, own in (("scale", scale), ("shift", shift))
        )
        scaled = Value(f"{node.output.name} scaled", source.shape)
        before = Node("binary", node.name, [source, factor], scaled, {"kind": "multiply"})
        graph.nodes.insert(graph.nodes.index(node), before)
        node.op, node.inputs, node.attributes = "binary", [scaled, term], {"kind": "add"}
        return
    weight = Value(f"{node.name} scale", (channels, 1, 1, 1), scale.float().view(-1, 1, 1, 1))
    bias = Value(f"{node.name} shift", (channels,), shift.float())
    node.op, node.inputs = "conv", [source, weight, bias]
    node.attributes = {
        "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": channels,
    }  # fmt: skip
