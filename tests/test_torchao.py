"""Models that torchao quantised to int8 as sparse ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparseinfer import from_quantized
from sparseinfer.convert.from_torchao import torchao_scale, torchao_weight
from sparseinfer.quantize import sqnr_db

torchao: Any = pytest.importorskip("torchao.quantization", reason="torchao is not installed")

CONFIGS = {
    "weight-only": lambda: torchao.Int8WeightOnlyConfig(),
    "dynamic": lambda: torchao.Int8DynamicActivationInt8WeightConfig(),
    "one scale": lambda: torchao.Int8WeightOnlyConfig(granularity=torchao.PerTensor()),
}


def _quantized(config: Any, bias: bool = True, amount: float = 0.8) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 32, bias), nn.ReLU(), nn.Linear(32, 8)).eval()
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", amount=amount)
        prune.remove(layer, "weight")
    torchao.quantize_(model, config)
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bias", [True, False])
def test_integers_and_scales_are_kept(name: str, bias: bool) -> None:
    model, x = _quantized(CONFIGS[name](), bias), torch.randn(16, 64)
    sparse: Any = from_quantized(model)
    for place in (0, 2):
        weight = model[place].weight
        values = weight.qdata * weight.scale
        assert torch.equal(sparse[place].dense_weight(), values)
        assert sparse[place].nnz == int((weight.qdata != 0).sum()) < 0.25 * values.numel()
        assert sparse[place].activation_scale is None and not sparse[place].training
    assert sqnr_db(model(x), sparse(x)) > 25
    assert isinstance(model[0], nn.Linear)  # the model itself stays as it is


def test_static_activations_keep_their_scale() -> None:
    layer = _quantized(torchao.Int8DynamicActivationInt8WeightConfig())[0]
    layer.weight.act_quant_scale = torch.tensor(0.02)
    sparse: Any = from_quantized(layer)
    assert sparse.activation_scale.zero_point == 128
    assert sparse.activation_scale.scale == pytest.approx(0.02)
    x = torch.randint(-128, 128, (4, 64)) * 0.02
    expected = x @ (layer.weight.qdata * layer.weight.scale).T + layer.bias
    torch.testing.assert_close(sparse(x), expected, rtol=1e-4, atol=1e-4)
    layer.weight.act_quant_zero_point = torch.tensor(-3, dtype=torch.int8)
    assert from_quantized(layer).activation_scale.zero_point == 125  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"zero_point": torch.tensor([[3]])}, "expected a symmetric weight.* got 3"),
        ({"scale": torch.ones(32, 4)}, r"expected scales by output row, got shape \[32, 4\]"),
        ({"act_pre_scale": torch.ones(64)}, "some that are scaled first"),
        ({"act_quant_scale": torch.ones(4)}, "expected one scale of activations"),
        ({"act_quant_scale": torch.tensor(0.0)}, "expected a scale of activations of 2"),
        ({"scale": torch.zeros(32, 1)}, "expected scales of 2"),
    ],
    ids=str,
)
def test_what_has_no_counterpart(change: dict[str, Any], expected: str) -> None:
    layer = _quantized(torchao.Int8WeightOnlyConfig())[0]
    for name, value in change.items():
        setattr(layer.weight, name, value)
    with pytest.raises(ValueError, match=expected):
        from_quantized(layer)


def test_dense_layers_are_left_alone() -> None:
    with pytest.raises(ValueError, match="expected a model with quantised linear layers"):
        from_quantized(nn.Sequential(nn.Linear(4, 4)))
    model = _quantized(torchao.Int8WeightOnlyConfig()).append(nn.Linear(8, 4))
    assert type(from_quantized(model)[3]) is nn.Linear
    weight: Any = model[0].weight
    assert torchao_scale(weight) is None and torchao_weight(weight).values.dtype is torch.int8
