"""Fake quantisation: layers compute with rounded weights and inputs, and gradients pass by.

For a short fine-tuning after pruning: the weights learn to stand where int8 will round them to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseinfer.quantize.activations import LEVELS, ActivationScale, quantize_per_token
from sparseinfer.quantize.weights import QMAX, weight_scales

__all__ = [
    "FakeQuantInput",
    "FakeQuantWeight",
    "add_fake_quant",
    "has_fake_quant",
    "remove_fake_quant",
]

QUANTIZED = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Classes of layers whose weights become int8."""


class FakeQuantWeight(nn.Module):
    """A parametrization that rounds a weight to int8 and back; its gradient passes unchanged.

    `mask` is what pruning multiplies the tensor by afterwards, so that values it drops widen no
    scale.

    Source: Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation", 2013 (the straight-through estimator).

    Example:
        >>> FakeQuantWeight()(torch.tensor([[127.0, 0.4, 0.6]]))
        tensor([[127.,   0.,   1.]])
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask  # the layer's own buffer, which moves and is saved with the layer

    def forward(self, weight: Tensor) -> Tensor:
        kept = weight if self.mask is None else weight * self.mask.to(weight)
        scales = weight_scales(kept)
        zero_points = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
        rounded: Tensor = torch.fake_quantize_per_channel_affine(
            weight, scales, zero_points, 0, -QMAX, QMAX
        )
        return rounded

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored for a weight that is assigned: itself."""
        return weight


class FakeQuantInput:
    """A forward pre-hook that rounds a layer's input to uint8 and back, by token without `scale`.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> layer.weight.data.fill_(1.0)
        tensor([[1.]])
        >>> _ = layer.register_forward_pre_hook(FakeQuantInput(ActivationScale(0.5, 0)))
        >>> layer(torch.tensor([[0.7]])).item()
        0.5
    """

    def __init__(self, scale: ActivationScale | None) -> None:
        self.scale = scale

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        if self.scale is not None:
            rounded = torch.fake_quantize_per_tensor_affine(
                x, self.scale.scale, self.scale.zero_point, 0, LEVELS
            )
            return rounded, *rest
        levels, scale, zero_point = quantize_per_token(x.detach())
        rounded = ((levels.float() - zero_point) * scale).to(x.dtype)
        return x + (rounded - x).detach(), *rest


def add_fake_quant(
    model: nn.Module, activations: Mapping[str, ActivationScale] | None = None
) -> nn.Module:
    """Let the linear layers and convolutions of a model compute with rounded weights and inputs.

    `activations` are scales of inputs by the layers' names, as `sparseinfer.calibrate` gives them;
    without an entry a linear layer's input is rounded token by token, a convolution's not at all.
    Weights stay float parameters, behind pruning's masks where there are some, and learn by a
    straight-through gradient. The model is changed and returned; `remove_fake_quant` undoes it
    before the conversion.

    Raises:
        TypeError: `model` is not an nn.Module.
        ValueError: the model has fake quantisation already, or no layer to quantise.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018.

    Example:
        >>> model = add_fake_quant(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> type(remove_fake_quant(model)[0].weight).__name__
        'Parameter'
    """
    layers = _layers(model)
    if has_fake_quant(model):
        raise ValueError(
            "expected a model without fake quantisation, got one that has it; try "
            "remove_fake_quant(model) first"
        )
    if not layers:
        raise ValueError(
            f"expected a model with linear layers or convolutions, got {type(model).__name__} "
            "without; try another model"
        )
    for name, module in layers.items():
        mask = module._buffers.get("weight_mask")
        masked = mask is not None and "weight_orig" in module._parameters
        tensor = "weight_orig" if masked else "weight"
        parametrize.register_parametrization(
            module, tensor, FakeQuantWeight(mask if masked else None), unsafe=True
        )
        scale = None if activations is None else activations.get(name)
        if scale is not None or isinstance(module, nn.Linear):
            module.register_forward_pre_hook(FakeQuantInput(scale))
    return model


def remove_fake_quant(model: nn.Module) -> nn.Module:
    """Take fake quantisation off a model, which is changed and returned; weights stay as learnt.

    Raises:
        TypeError: `model` is not an nn.Module.

    Example:
        >>> remove_fake_quant(nn.Linear(4, 4))
        Linear(in_features=4, out_features=4, bias=True)
    """
    for module in _layers(model).values():
        for number, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, FakeQuantInput):
                del module._forward_pre_hooks[number]
        for tensor in ("weight", "weight_orig"):
            _take_off(module, tensor)
    return model


def _take_off(module: nn.Module, tensor: str) -> None:
    """Drop the fake quantisation of one tensor, whose other parametrizations stay."""
    if not parametrize.is_parametrized(module, tensor):
        return
    held: Any = module.parametrizations
    kept = [own for own in held[tensor] if not isinstance(own, FakeQuantWeight)]
    if len(kept) == len(held[tensor]):
        return
    if not kept:
        original = held[tensor].original
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=False)
        module.register_parameter(tensor, original)
        return
    for place in reversed(range(len(held[tensor]))):
        if isinstance(held[tensor][place], FakeQuantWeight):
            del held[tensor][place]


def has_fake_quant(model: nn.Module) -> bool:
    """Whether a layer of the model computes with rounded weights.

    Example:
        >>> has_fake_quant(nn.Linear(4, 4))
        False
    """
    return any(_is_fake(module) for module in model.modules())


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}; try the model itself")
    return {name: own for name, own in model.named_modules() if isinstance(own, QUANTIZED)}


def _is_fake(module: nn.Module) -> bool:
    parametrized: Any = getattr(module, "parametrizations", {})
    return any(isinstance(own, FakeQuantWeight) for held in parametrized.values() for own in held)
