"""Weights as int8: one symmetric scale an output row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.quantize.activations import LEAST_SCALE, MOST_SCALE

__all__ = ["QMAX", "QuantizedWeight", "check_scales", "quantize_weight", "weight_scales"]

QMAX = 127
"""The largest int8 weight; only scales of others give -128, so that own ones are symmetric."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight `values * scales`: int8 `[M, ...]`, and a float32 scale a row `[M]`."""

    values: Tensor
    scales: Tensor

    def dequantize(self) -> Tensor:
        """The float32 weight that this stands for.

        Example:
            >>> quantize_weight(torch.tensor([[1.0, -0.5]])).dequantize().shape
            torch.Size([1, 2])
        """
        return self.values.float() * _by_row(self.scales, self.values)


def weight_scales(weight: Tensor) -> Tensor:
    """The scale of each output row of a weight `[M, ...]`: its largest magnitude over 127, `[M]`.

    A row of zeros has the scale 1.

    Raises:
        ValueError: the weight has no elements, holds NaN or Inf, or a row's values are so small
            or so large that their scale is not 2^-60 to 2^48.

    Example:
        >>> weight_scales(torch.tensor([[254.0, 0.0], [0.0, 0.0]]))
        tensor([2., 1.])
    """
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(
            f"expected a weight [M, ...] with elements, got shape {list(weight.shape)}; try the "
            "weight of a linear layer or a convolution"
        )
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        count = int((~torch.isfinite(weight)).sum())
        raise ValueError(
            f"expected finite weights to quantise, got {count} NaN or Inf; try weights='float32'"
        )
    largest = weight.abs().flatten(1).amax(1)
    scales = largest / QMAX
    beyond = (largest > 0) & ((scales < LEAST_SCALE) | (scales > MOST_SCALE))
    if beyond.any():
        row = int(beyond.nonzero()[0])
        raise ValueError(
            f"expected weights whose scale is 2^-60 to 2^48, got {float(largest[row]):g} as the "
            f"largest in row {row}; try weights='float32', or setting such rows to zero"
        )
    return torch.where(largest > 0, scales, torch.ones_like(scales))


def quantize_weight(weight: Tensor, scales: Tensor | None = None) -> QuantizedWeight:
    """Round a float weight `[M, ...]` to int8 by `scales` `[M]`; None: those of `weight_scales`.

    Raises:
        ValueError: see `weight_scales`; or the scales are not `[M]`, of 2^-60 to 2^48, and so
            large that no weight is beyond 127 of them.

    Example:
        >>> quantize_weight(torch.tensor([[127.0, -2.0]])).values
        tensor([[127,  -2]], dtype=torch.int8)
    """
    own = weight_scales(weight)
    if scales is None:
        scales = own
    else:
        check_scales(scales, weight.shape[0])
        scales = scales.detach().float()
        low, high = torch.aminmax(weight.detach().float().flatten(1), dim=1)
        # Up to half a step more is rounded to the last integer.
        over = (high > (QMAX + 0.5) * scales) | (-low > (QMAX + 1.5) * scales)
        if over.any():
            row = int(over.nonzero()[0])
            raise ValueError(
                f"expected scales of which {QMAX} reach the largest weight, got "
                f"{float(scales[row]):g} for row {row}, which needs {float(own[row]):g}; try "
                "scales=None"
            )
    values = torch.round(weight.detach().float() / _by_row(scales, weight))
    return QuantizedWeight(values.clamp(-QMAX - 1, QMAX).to(torch.int8), scales)


def check_scales(scales: Tensor, rows: int) -> None:
    """Check that `scales` are `rows` numbers of 2^-60 to 2^48.

    Raises:
        TypeError: they are no tensor.
        ValueError: they are others, or more or fewer.

    Example:
        >>> check_scales(torch.ones(4), 4)
    """
    if not isinstance(scales, Tensor):
        raise TypeError(
            f"expected scales as a tensor, got {type(scales).__name__}; try torch.tensor(scales)"
        )
    if tuple(scales.shape) != (rows,):
        raise ValueError(
            f"expected a scale for each of {rows} output rows, got shape {list(scales.shape)}; try "
            "scales.expand(rows) of a scale for all"
        )
    good = (scales >= LEAST_SCALE) & (scales <= MOST_SCALE)
    if not good.all():
        row = int((~good).nonzero()[0])
        raise ValueError(
            f"expected scales of 2^-60 to 2^48, got {float(scales[row]):g} for row {row}; try "
            "scales=None, which follow from the weight"
        )


def _by_row(scales: Tensor, like: Tensor) -> Tensor:
    return scales.reshape(-1, *[1] * (like.dim() - 1))
