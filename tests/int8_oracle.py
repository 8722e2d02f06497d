"""What an int8 layer must give: integer sums in float64, where they are exact, and one rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.quantize import ActivationScale, quantize_per_token, quantize_weight

ROUNDINGS = 4 * 2.0**-23
"""Relative error of the few float32 operations behind an exact sum."""


def check_int8(y: Tensor, x: Tensor, dense: Any, scale: ActivationScale | None) -> None:
    """Assert that y is what the dense layer gives on rounded weights and inputs."""
    weight = quantize_weight(dense.weight)
    if scale is None:
        levels, steps, zero_points = quantize_per_token(x)
    else:
        levels, steps, zero_points = scale.quantize(x), torch.tensor(scale.scale), scale.zero_point
    integers = levels.double() - zero_points
    values = weight.values.double()
    axes = 0 if isinstance(dense, nn.Linear) else dense.weight.dim() - 2
    by_row = weight.scales.double().reshape(-1, *[1] * axes)
    if axes == 0:
        sums = integers @ values.T
    else:
        sums = _conv(integers, values, dense)
    steps = steps.double()
    bias = torch.zeros(len(values)) if dense.bias is None else dense.bias.detach()
    expected = sums * (by_row * steps) + bias.double().reshape(-1, *[1] * axes)
    bound = ROUNDINGS * ((sums * by_row * steps).abs() + bias.double().abs().max() + 1e-30)
    assert y.shape == expected.shape and y.dtype is torch.float32
    assert ((y.double() - expected).abs() <= bound).all()


def _conv(x: Tensor, weight: Tensor, dense: Any) -> Tensor:
    if dense.padding_mode != "zeros":
        x = F.pad(x, dense._reversed_padding_repeated_twice, dense.padding_mode)
        padding: Any = 0
    else:
        padding = dense.padding
    conv = F.conv1d if weight.dim() == 3 else F.conv2d
    return conv(x, weight, None, dense.stride, padding, dense.dilation, dense.groups)
