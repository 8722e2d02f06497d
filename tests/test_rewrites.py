"""Formulas that models write out become the operators that they are, and others stay."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparseinfer.export.compile import compile
from sparseinfer.export.errors import UnsupportedOperators
from sparseinfer.export.from_torch import from_torch


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


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))


@pytest.mark.parametrize(
    ("formula", "op", "activation"),
    [(gelu_new, "activation", "gelu_tanh"), (gelu, "activation", "gelu"),
     (rms_norm, "layer_norm", "none")],
)  # fmt: skip
def test_formulas(formula: Callable[[Tensor, Tensor], Tensor], op: str, activation: str) -> None:
    torch.manual_seed(0)
    model, x = Written(lambda x, w: formula(formula(x, w), w)).eval(), torch.randn(3, 8)
    nodes = from_torch(model, (x,), {})[0].nodes
    assert [(node.op, node.activation) for node in nodes] == [(op, activation)] * 2
    if op == "layer_norm":
        assert nodes[0].attributes == {"eps": 1e-3, "centred": False}
    engine = compile(model, x, baselines=())
    assert torch.allclose(engine(x), model(x), atol=1e-5)
    assert engine.compare(model, x).first is None


@pytest.mark.parametrize(
    "formula",
    [
        lambda x, w: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x, w: x * 0.5 * (1.0 + torch.erf(x / 1.4)),
        lambda x, w: x * 0.5 * (1.0 + torch.erf(w / math.sqrt(2.0))),
        lambda x, w: w * (x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-3)),
        lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-3)),
        lambda x, w: w * (w * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)),
    ],
)
def test_others_stay(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    """What differs in a number, an axis or an operand is no such formula."""
    model = Written(formula).eval()
    try:
        nodes = from_torch(model, (torch.randn(3, 8),), {})[0].nodes
    except UnsupportedOperators:
        return
    kinds = {(node.op, node.activation) for node in nodes}
    assert "layer_norm" not in {op for op, _ in kinds}
    assert not {"gelu", "gelu_tanh"} & {activation for _, activation in kinds}


def test_weights_of_another_shape_are_refused() -> None:
    model = Written(lambda x, w: rms_norm(x, torch.ones(3, 1))).eval()
    with pytest.raises(UnsupportedOperators, match="normalises over"):
        from_torch(model, (torch.randn(3, 8),), {})
