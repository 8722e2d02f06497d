"""Whole networks from transformers' configurations, pruned, converted, held against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import EPS
from torch import nn

from sparseinfer import convert_to_sparse, report
from sparseinfer.layers.linear_conv import SparseLayer

transformers = pytest.importorskip("transformers")

Inputs = dict[str, torch.Tensor]


def _resnet(full: bool) -> tuple[nn.Module, Inputs]:
    small = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2]}
    config = transformers.ResNetConfig(num_labels=10, **({} if full else small))
    size = 224 if full else 40
    return _made("ResNetForImageClassification", config), {
        "pixel_values": torch.randn(1 if full else 2, 3, size, size)
    }


def _mobilenet(full: bool) -> tuple[nn.Module, Inputs]:
    config = transformers.MobileNetV2Config(
        num_labels=10, depth_multiplier=1.0 if full else 0.35, image_size=224 if full else 64
    )
    size = config.image_size
    return _made("MobileNetV2ForImageClassification", config), {
        "pixel_values": torch.randn(1, 3, size, size)
    }


def _bert(full: bool) -> tuple[nn.Module, Inputs]:
    small = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 100,
    }  # fmt: skip
    config = transformers.BertConfig(**({} if full else small))
    ids = torch.randint(0, 100, (2, 128 if full else 17))
    return _made("BertForSequenceClassification", config), {"input_ids": ids}


def _vit(full: bool) -> tuple[nn.Module, Inputs]:
    small = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = transformers.ViTConfig(num_labels=10, **({} if full else small))
    size = config.image_size
    return _made("ViTForImageClassification", config), {
        "pixel_values": torch.randn(1, 3, size, size)
    }


def _made(name: str, config: Any) -> nn.Module:
    return getattr(transformers, name)(config).eval()


NETWORKS = {"resnet": _resnet, "mobilenet": _mobilenet, "bert": _bert, "vit": _vit}


def _prune_mixed(model: nn.Module) -> None:
    """Prune layers by turns at 0, 50, 80 and 95%, and let batch norms pass their signal on."""
    densities = [1.0, 0.5, 0.2, 0.05]
    turn = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data *= torch.rand(module.weight.shape) < densities[turn % 4]
            turn += 1
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)


def _logits(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def _check(model: nn.Module, sparse: nn.Module, inputs: Inputs) -> None:
    """The converted network's error against float64 is that of the dense one, to a small factor.

    Rounding spreads through a network as its layers amplify it, which the dense float32 run
    measures; the second term stands where the dense run happens to be exact.
    """
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    exact = _logits(copy.deepcopy(model).double(), wide)
    dense_error = (_logits(model, inputs).double() - exact).abs().max()
    error = (_logits(sparse, inputs).double() - exact).abs().max()
    assert error <= 8 * dense_error + 64 * EPS * exact.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_everything_converted(name: str, full: bool) -> None:
    make: Callable[[bool], tuple[nn.Module, Inputs]] = NETWORKS[name]
    model, inputs = make(full)
    _prune_mixed(model)
    sparse = convert_to_sparse(model, min_speedup=0)
    assert not any(isinstance(m, nn.Linear | nn.Conv2d) for m in sparse.modules())
    _check(model, sparse, inputs)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_converted_by_measurement(name: str, full: bool) -> None:
    model, inputs = NETWORKS[name](full)
    _prune_mixed(model)
    sparse = convert_to_sparse(model, example_inputs=inputs, budget_s=60 if full else 15)
    _check(model, sparse, inputs)
    found = report(sparse)
    for layer in found.layers:
        if layer.kind == "embedding":
            assert "lookup" in layer.reason
            continue
        module = sparse.get_submodule(layer.name)
        assert isinstance(module, SparseLayer) is layer.is_sparse
        unmeasured = ("it has no zeros", "the time to measure was spent")
        assert layer.timing == "measured" or layer.reason.startswith(unmeasured)
        if layer.is_sparse:
            assert layer.speedup >= 1.05


def test_a_network_saves_and_loads(tmp_path: Any) -> None:
    model, inputs = _bert(False)
    _prune_mixed(model)
    sparse = convert_to_sparse(model, min_speedup=0)
    torch.save(sparse.state_dict(), tmp_path / "state.pt")
    other, _ = _bert(False)
    fresh = convert_to_sparse(other, min_speedup=0)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(_logits(fresh, inputs), _logits(sparse, inputs))
