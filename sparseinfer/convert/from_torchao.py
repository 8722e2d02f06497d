"""Reads the int8 weights of torchao's linear layers, tensors of a class of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparseinfer.quantize.activations import ActivationScale
from sparseinfer.quantize.weights import QuantizedWeight

__all__ = ["has_torchao_weight", "torchao_scale", "torchao_weight"]

_CLASS = "Int8Tensor"
"""torchao 0.15 and later; what came before it, `AffineQuantizedTensor`, went with version 1 of its
configurations. Known by name, so that torchao is never imported."""

_SIGNED = 128
"""Their activations are int8, ours uint8: the same levels, so much apart."""


def has_torchao_weight(module: nn.Module) -> bool:
    """Whether a module is a linear layer that torchao quantised to int8.

    Example:
        >>> has_torchao_weight(nn.Linear(4, 4))
        False
    """
    weight = module._parameters.get("weight")
    named = type(weight).__name__ == _CLASS and type(weight).__module__.startswith("torchao.")
    return isinstance(module, nn.Linear) and named


def torchao_weight(weight: Any) -> QuantizedWeight:
    """The integers and the scales by output row of a torchao weight.

    Raises:
        ValueError: a zero point is not 0, its scales are not by rows, or its inputs are scaled
            first (SmoothQuant).

    Example:
        >>> import torch
        >>> class Int8:
        ...     qdata, scale = torch.ones(2, 4, dtype=torch.int8), torch.full((2, 1), 0.5)
        ...     zero_point = act_pre_scale = None
        >>> torchao_weight(Int8).dequantize().sum()
        tensor(4.)
    """
    values, scale, zero_points = weight.qdata, weight.scale, weight.zero_point
    rows = values.shape[0]
    if scale.numel() not in (1, rows) or scale.shape[0] not in (1, rows):
        raise ValueError(
            f"expected scales by output row, got shape {list(scale.shape)} for {rows} rows; try "
            "granularity=PerRow()"
        )
    if zero_points is not None and zero_points.any():
        raise ValueError(
            "expected a symmetric weight, with zero points of 0, got "
            f"{int(zero_points[zero_points != 0][0])}; try a symmetric mapping of weights"
        )
    if weight.act_pre_scale is not None:
        raise ValueError(
            "expected inputs as the layer is called with, got some that are scaled first; try "
            "quantize_ without SmoothQuant"
        )
    return QuantizedWeight(values.detach(), scale.detach().float().reshape(-1).expand(rows))


def torchao_scale(weight: Any) -> ActivationScale | None:
    """The scale of the input of a torchao weight; None where it is found at every call.

    Raises:
        ValueError: there are several.

    Example:
        >>> import torch
        >>> class Int8:
        ...     act_quant_scale, act_quant_zero_point = torch.tensor(0.5), None
        >>> torchao_scale(Int8)
        ActivationScale(scale=0.5, zero_point=128)
    """
    scale, zero_point = weight.act_quant_scale, weight.act_quant_zero_point
    if scale is None:
        return None
    if scale.numel() != 1:
        raise ValueError(
            f"expected one scale of activations, got shape {list(scale.shape)}; try "
            "granularity=PerTensor()"
        )
    shift = 0 if zero_point is None else int(zero_point)
    return ActivationScale(float(scale), shift + _SIGNED)
