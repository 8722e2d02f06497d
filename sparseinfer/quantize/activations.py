"""Activations as uint8: a scale and a zero point, of a tensor or of each token."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LEAST_SCALE",
    "LEVELS",
    "MOST_SCALE",
    "ActivationScale",
    "quantize_per_token",
    "range_of_token",
    "ranges_per_token",
    "reciprocal",
    "scale_of_range",
]

LEVELS = 255
"""Steps of a uint8."""

LEAST_SCALE = 2.0**-60
MOST_SCALE = 2.0**48
"""Between these no product of two scales leaves float32."""


@dataclass(frozen=True)
class ActivationScale:
    """Activations `scale * (q - zero_point)`, q from 0 to 255, so that 0.0 is exact.

    Raises:
        TypeError: the scale is no number, or the zero point no whole one.
        ValueError: the scale is not 2^-60 to 2^48, or the zero point is not 0 to 255.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        scale: Any = self.scale
        zero_point: Any = self.zero_point
        if not isinstance(scale, Real) or not isinstance(zero_point, Integral):
            raise TypeError(
                "expected a number and a whole number as scale and zero point, got "
                f"{type(scale).__name__} and {type(zero_point).__name__}; try "
                "scale_of_range(low, high)"
            )
        if not LEAST_SCALE <= self.scale <= MOST_SCALE:
            raise ValueError(
                f"expected a scale of activations of 2^-60 to 2^48, got {self.scale}; try "
                "calibration data whose values differ"
            )
        if not 0 <= self.zero_point <= LEVELS:
            raise ValueError(
                f"expected a zero point from 0 to {LEVELS}, got {self.zero_point}; try "
                "scale_of_range(low, high)"
            )

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest of the 256 levels (of two equally near ones the even one), as uint8.

        Example:
            >>> ActivationScale(0.5, 10).quantize(torch.tensor([-100.0, 0.0, 1.0]))
            tensor([ 0, 10, 12], dtype=torch.uint8)
        """
        # The kernels multiply too.
        levels = torch.round(x.float() * reciprocal(self.scale)) + self.zero_point
        return levels.clamp(0, LEVELS).to(torch.uint8)

    def dequantize(self, levels: Tensor) -> Tensor:
        """The float32 activations of these levels.

        Example:
            >>> ActivationScale(0.5, 10).dequantize(torch.tensor([12], dtype=torch.uint8))
            tensor([1.])
        """
        return (levels.float() - self.zero_point) * self.scale


def scale_of_range(low: float, high: float) -> ActivationScale:
    """The scale and zero point of activations from `low` to `high`; 0 is taken into the range.

    Raises:
        ValueError: a bound is NaN or Inf, `low` exceeds `high`, or the range is so narrow or so
            wide that its scale is not 2^-60 to 2^48.

    Example:
        >>> scale_of_range(-128.0, 127.0)
        ActivationScale(scale=1.0, zero_point=128)
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(
            f"expected a range of finite activations, got {low} to {high}; try calibration data "
            "without NaN and Inf"
        )
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor((high - low) / LEVELS, dtype=torch.float32))  # as kernels have it
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise ValueError(
            f"expected activations whose scale is 2^-60 to 2^48, got a range of {low:g} to "
            f"{high:g}; try calibration data like what the model will be called with"
        )
    return ActivationScale(scale, min(LEVELS, max(0, round(-low / scale))))


def reciprocal(scale: float) -> float:
    """1 / scale in float32.

    Example:
        >>> reciprocal(0.5)
        2.0
    """
    return float(1 / torch.tensor(scale, dtype=torch.float32))


def ranges_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """The float32 scale and the int32 zero point of each token of x `[N, K]`, `[N]` both.

    A token of zeros has the scale 1, and one that holds NaN or Inf a scale that is not finite.

    Example:
        >>> ranges_per_token(torch.tensor([[0.0, 255.0], [-255.0, 0.0], [0.0, 0.0]]))
        (tensor([1., 1., 1.]), tensor([  0, 255,   0], dtype=torch.int32))
    """
    # Along a dimension torch.aminmax takes sixteen times as long as these two.
    low, high = x.amin(-1).clamp_(max=0), x.amax(-1).clamp_(min=0)
    scale = high.sub_(low).div_(LEVELS)
    scale.masked_fill_(scale < LEAST_SCALE, 1.0)
    return scale, low.neg_().div_(scale).round_().nan_to_num_(0.0).to(torch.int32)


def range_of_token(x: Tensor) -> tuple[float, int]:
    """What `ranges_per_token` gives for x as one token, sooner: its operators cost more than a call
    of a small layer.

    Example:
        >>> range_of_token(torch.tensor([-255.0, 0.0]))
        (1.0, 255)
    """
    least, most = torch.aminmax(x)
    # A NaN is both bounds, and stays so where it is the first of two.
    low, high = min(least.item(), 0.0), max(most.item(), 0.0)
    # Of two float32, rounded once from a double: the same as in float32.
    scale = _float32(_float32(high - low) / LEVELS)
    if scale < LEAST_SCALE:
        scale = 1.0
    ratio = -low / scale
    return scale, round(_float32(ratio)) if math.isfinite(ratio) else 0


def _float32(value: float) -> float:
    """The nearest float32; beyond their range an infinite one."""
    return ctypes.c_float(value).value


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels of x `[..., K]`, and the scale and zero point `[..., 1]` of each of its tokens.

    A token of zeros has the scale 1.

    Example:
        >>> levels, scale, zero_point = quantize_per_token(torch.tensor([[0.0, 255.0], [-1.0, 0]]))
        >>> levels.tolist(), zero_point.tolist()
        ([[0, 255], [0, 255]], [[0], [255]])
    """
    x = x.float()
    scale, zero_point = (own.unsqueeze(-1) for own in ranges_per_token(x))
    levels = (torch.round(x * scale.reciprocal()) + zero_point).clamp(0, LEVELS)
    return levels.to(torch.uint8), scale, zero_point
