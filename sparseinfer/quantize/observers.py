"""Observers of activations: what range of values an input of a layer has, over many batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparseinfer.quantize.activations import LEVELS, ActivationScale, scale_of_range

__all__ = ["OBSERVERS", "MinMax", "Mse", "Observer", "Percentile", "observer"]

BINS = 8192
"""Of a histogram, over both signs."""

SHRINKS = torch.linspace(0.1, 1.0, 91).tolist()
"""Shares of the range that `Mse` tries to keep."""


class Observer:
    """The smallest and the largest value seen, and the range to quantise to: all of it.

    `observe` takes a batch of any shape; `result` is the scale and zero point for what was seen.
    """

    def __init__(self) -> None:
        self.low, self.high, self.count = math.inf, -math.inf, 0

    def observe(self, x: Tensor) -> None:
        """Take a batch of activations into account.

        Raises:
            TypeError: it is no floating-point tensor.
            ValueError: it holds NaN or Inf.

        Example:
            >>> seen = MinMax()
            >>> seen.observe(torch.tensor([-1.0, 3.0]))
            >>> seen.low, seen.high
            (-1.0, 3.0)
        """
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point activations, got {x.dtype}; try x.float()")
        if x.numel() == 0:
            return
        x = x.detach().float()
        low, high = (float(bound) for bound in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~torch.isfinite(x)).sum())
            raise ValueError(
                f"expected finite activations, got {bad} NaN or Inf among {x.numel()}; try "
                "calibration data without them"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += x.numel()
        self._note(x)

    def _note(self, x: Tensor) -> None:
        """What a subclass keeps of a batch beside its bounds."""

    def range(self) -> tuple[float, float]:
        """The values to quantise between."""
        return self.low, self.high

    def result(self) -> ActivationScale:
        """The scale and zero point.

        Raises:
            ValueError: nothing was observed, or see `scale_of_range`.

        Example:
            >>> seen = MinMax()
            >>> seen.observe(torch.tensor([0.0, 510.0]))
            >>> seen.result()
            ActivationScale(scale=2.0, zero_point=0)
        """
        if self.count == 0:
            raise ValueError(
                "expected activations to calibrate from, got none; try data that is not empty and "
                "that reaches the layer"
            )
        return scale_of_range(*self.range())


class MinMax(Observer):
    """The whole range: nothing is clipped, and one outlier coarsens all other values."""


class _Histogram(Observer):
    """Counts in `BINS` equal bins over [-limit, limit]; the limit doubles when a value needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def _note(self, x: Tensor) -> None:
        largest = max(-self.low, self.high)
        if largest == 0:
            return
        if self.limit == 0:
            # A power of two, so that the bins of a wider histogram are pairs of this one's.
            self.limit = 2.0 ** math.ceil(math.log2(largest))
        while self.limit < largest:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(pairs, (BINS // 4, BINS // 4))
            self.limit *= 2
        self.counts += torch.histc(x, BINS, -self.limit, self.limit).double().cpu()

    def centres(self) -> Tensor:
        """The middle of each bin."""
        step = 2 * self.limit / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * step - self.limit


class Percentile(_Histogram):
    """The range without the `100 - percentile` per cent of the values at either end.

    Raises:
        ValueError: the percentile is not above 50 and at most 100.

    Source: Wu et al., "Integer Quantization for Deep Learning Inference", 2020.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        if not 50 < percentile <= 100:
            raise ValueError(
                f"expected a percentile above 50 and at most 100, got {percentile}; try 99.99"
            )
        self.share = percentile / 100

    def range(self) -> tuple[float, float]:
        sums = self.counts.cumsum(0)
        total = float(sums[-1])
        if total == 0:
            return self.low, self.high
        step = 2 * self.limit / BINS
        first = int(torch.searchsorted(sums, (1 - self.share) * total, right=True))
        last = int(torch.searchsorted(sums, self.share * total))
        low, high = first * step - self.limit, (last + 1) * step - self.limit
        return max(self.low, low), min(self.high, high)


class Mse(_Histogram):
    """The range, within that of all values, with the least mean squared error.

    Source: Nagel et al., "A White Paper on Neural Network Quantization", 2021 (section 3.1).
    """

    def range(self) -> tuple[float, float]:
        used = self.counts > 0
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if not used.any() or low == high:
            return self.low, self.high
        values, counts = self.centres()[used].clamp(self.low, self.high), self.counts[used]

        def error(low: float, high: float) -> float:
            step = (high - low) / LEVELS
            if step == 0:
                return math.inf
            zero = round(-low / step)
            levels = (torch.round(values / step) + zero).clamp(0, LEVELS)
            return float((((levels - zero) * step - values).square() * counts).sum())

        # One end after the other, the longer one first: together they would be thousands of pairs.
        bounds = [low, high]
        for end in (1, 0) if high >= -low else (0, 1):
            tried = [[share * bounds[0], bounds[1]] for share in SHRINKS]
            if end:
                tried = [[bounds[0], share * bounds[1]] for share in SHRINKS]
            bounds = min(tried, key=lambda both: error(*both))
        return bounds[0], bounds[1]


OBSERVERS: dict[str, type[Observer]] = {"minmax": MinMax, "percentile": Percentile, "mse": Mse}
"""By the name that `calibrate` takes."""


def observer(method: str) -> Observer:
    """A new observer of this name.

    Raises:
        ValueError: there is none.

    Example:
        >>> type(observer("mse")).__name__
        'Mse'
    """
    if method not in OBSERVERS:
        raise ValueError(
            f"expected a method of {', '.join(OBSERVERS)}, got {method!r}; try method='mse'"
        )
    return OBSERVERS[method]()
