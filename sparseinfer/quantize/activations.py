"""Activations as uint8: a scale and a zero point, of a tensor or of each token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LEVELS", "ActivationScale", "quantize_per_token", "scale_of_range"]

LEVELS = 255
"""Steps of a uint8."""


@dataclass(frozen=True)
class ActivationScale:
    """Activations `scale * (q - zero_point)`, q from 0 to 255, so that 0.0 is exact.

    Raises:
        ValueError: the scale is not positive and finite, or the zero point is not 0 to 255.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(
                f"expected a positive, finite scale of activations, got {self.scale}; try "
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
        levels = torch.round(x.float() / self.scale) + self.zero_point
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
            wide that float32 has no scale for it.

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
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= scale <= limits.max / LEVELS:
        raise ValueError(
            f"expected activations whose scale float32 can hold, got a range of {low:g} to "
            f"{high:g}; try calibration data like what the model will be called with"
        )
    return ActivationScale(scale, min(LEVELS, max(0, round(-low / scale))))


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels of x `[..., K]`, and the scale and zero point `[..., 1]` of each of its tokens.

    A token of zeros has the scale 1.

    Example:
        >>> levels, scale, zero_point = quantize_per_token(torch.tensor([[0.0, 255.0], [-1.0, 0]]))
        >>> levels.tolist(), zero_point.tolist()
        ([[0, 255], [0, 255]], [[0.0], [255.0]])
    """
    x = x.float()
    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.round(low.abs() / scale).clamp(0, LEVELS)
    levels = (torch.round(x / scale) + zero_point).clamp(0, LEVELS)
    return levels.to(torch.uint8), scale, zero_point
