"""Formulas that models write out become the operators that they are, and others stay."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparseinfer.export.compile import compile
from sparseinfer.export.from_torch import from_torch
from sparseinfer.export.graph import Node
from sparseinfer.export.passes.dead_code import remove_dead_code
from sparseinfer.export.passes.formulas import fuse_formulas


class Written(nn.Module):
    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, self.weight)


def gelu_new(x: Tensor, weight: Tensor) -> Tensor:
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
    return 0.5 * x * (1.0 + torch.tanh(inner))


def gelu(x: Tensor, weight: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_backwards(x: Tensor, weight: Tensor) -> Tensor:
    return (torch.erf(x * 0.7071067811865475) + 1) * x * 0.5


def gelu_fast(x: Tensor, weight: Tensor) -> Tensor:
    """As ALBERT writes it."""
    inner = x * 0.7978845608 * (1.0 + 0.044715 * x * x)
    return 0.5 * x * (1.0 + torch.tanh(inner))


def silu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.sigmoid(x) * x


def hardswish(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.nn.functional.relu6(x + 3) / 6


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-3) * weight + weight


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))


def formulas(model: nn.Module, x: Tensor) -> list[Node]:
    graph = from_torch(model, (x,), {})[0]
    fuse_formulas(graph)
    remove_dead_code(graph)
    return graph.nodes


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("formula", "op", "activation"),
    [(gelu_new, "activation", "gelu_tanh"), (gelu_fast, "activation", "gelu_tanh"),
     (gelu, "activation", "gelu"), (gelu_backwards, "activation", "gelu"),
     (silu, "activation", "silu"), (hardswish, "unary", "none"),
     (layer_norm, "layer_norm", "none"), (rms_norm, "layer_norm", "none")],
)  # fmt: skip
def test_formulas(formula: Callable[[Tensor, Tensor], Tensor], op: str, activation: str) -> None:
    torch.manual_seed(0)
    model, x = Written(lambda x, w: formula(formula(x, w), w)).eval(), torch.randn(3, 8)
    nodes = formulas(model, x)
    assert [(node.op, node.activation) for node in nodes] == [(op, activation)] * 2
    if op == "layer_norm":
        assert nodes[0].attributes == {"eps": pytest.approx(1e-3), "centred": formula is layer_norm}
    engine = compile(model, x, baselines=())
    assert torch.allclose(engine(x), model(x), atol=1e-5)
    assert engine.compare(model, x).first is None


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "formula",
    [
        lambda x, w: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x, w: x * 0.5 * (1.0 + torch.erf(x / 1.4)),
        lambda x, w: x * 0.6 * (1.0 + torch.erf(x / math.sqrt(2.0))),
        lambda x, w: x * w * torch.sigmoid(x),
        lambda x, w: x * 0.5 * (1.0 + torch.erf(w / math.sqrt(2.0))),
        lambda x, w: w * (x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-3)),
        lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-3)),
        lambda x, w: w * (w * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)),
    ],
)
def test_others_stay(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    """What differs in a number, an axis or an operand is no such formula."""
    nodes = formulas(Written(formula).eval(), torch.randn(3, 8))
    kinds = {(node.op, node.activation) for node in nodes}
    assert "layer_norm" not in {op for op, _ in kinds}
    assert not {"gelu", "gelu_tanh"} & {activation for _, activation in kinds}


def test_weights_of_another_shape_stay() -> None:
    model = Written(lambda x, w: rms_norm(x, torch.ones(3, 1) * 2)).eval()
    assert [node.op for node in formulas(model, torch.randn(3, 8))] == ["layer_norm", "binary"]
