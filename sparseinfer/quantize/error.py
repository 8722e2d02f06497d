"""What rounding costs: the ratio of signal to quantisation noise."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["sqnr_db"]


def sqnr_db(exact: Tensor, rounded: Tensor) -> float:
    """Decibels of a signal over its error, 10 log10(|y|^2 / |y - y'|^2); infinite for no error.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> round(sqnr_db(torch.ones(4), torch.ones(4) * 0.9), 1)
        20.0
    """
    if exact.shape != rounded.shape:
        raise ValueError(
            f"expected outputs of one shape, got {list(exact.shape)} and {list(rounded.shape)}; "
            "try the same input for both"
        )
    wide = exact.detach().double()
    signal = float(wide.square().sum())
    noise = float((wide - rounded.detach().double()).square().sum())
    if noise == 0:
        return math.inf
    if signal == 0 or not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)
