"""One int8 layer to measure: integers with their scales, the exact answer, and a peer's error."""

from __future__ import annotations

import zlib
from functools import cached_property

import numpy as np
import torch

from benchmarks.cases import Case, ConvCase, Pattern
from benchmarks.layer_data import LayerData, WrongResultError
from benchmarks.peers.engines.interface import (
    DYNAMIC,
    SEVEN_BITS,
    Array,
    Quantization,
    seven_bits,
)

X_SCALE = np.float32(0.02)
LINEAR_X_ZERO = 13
"""A linear layer's inputs have a few negative values, as after GELU; a convolution's none."""

ROUNDING = 1e-3
"""Steps of y that float32 arithmetic on an exact sum of products may be off."""

MOST_OFF = 0.01
"""Share of a uint8 y that may lie a step beside the exact result: those at the edge of a step."""


class QuantizedData:
    """Data of one int8 layer. Linear: x[N, K] token-major; convolution: x[1, C, H, W].

    The weight is `LayerData`'s, symmetric in [-127, 127] by a scale an output row; what is not zero
    stays so. x is uint8, or with ``io`` float32 the numbers that uint8 stands for. y is uint8 with
    zero point 0, so that saturation is a ReLU; or float32, whose scale is that of an engine that
    rounds y to uint8 on its way.
    """

    def __init__(self, case: Case, pattern: Pattern, io: str = "uint8") -> None:
        self.case = case
        self.pattern = pattern
        self.io = io
        base = LayerData(case, pattern)
        assert base.bias is not None
        rows = base.weight.flatten(1)
        largest = rows.abs().amax(1)
        scales = torch.where(largest > 0, largest / 127, 1.0)
        rounded = (rows.abs() / scales[:, None]).round().clamp(1, 127)
        self.weight = (rows.sign() * rounded).to(torch.int8).view(base.weight.shape)
        x_zero = 0 if isinstance(case, ConvCase) else LINEAR_X_ZERO
        generator = torch.Generator().manual_seed(zlib.crc32(f"uint8 {case.name}".encode()))
        self._integers = torch.randint(0, 256, base.x.shape, generator=generator).to(torch.uint8)
        # Whoever finds the scale of x from its values finds this one.
        self._integers.view(-1)[:2] = torch.tensor([0, 255])
        self._scales = scales.double() * float(X_SCALE)
        self.bias = (base.bias.double() / self._scales).round().to(torch.int32)
        low = 0.0 if io == "uint8" else min(0.0, float(self._exact.min()))
        y_scale = float(np.float32((max(float(self._exact.max()), 1e-6) - low) / 255))
        self.quantization = Quantization(
            scales.numpy(), float(X_SCALE), x_zero, y_scale, round(-low / y_scale)
        )

    @property
    def x(self) -> torch.Tensor:
        """The input, of the type ``io``."""
        if self.io == "uint8":
            return self._integers
        return (self._integers.float() - self._x_zero) * float(X_SCALE)

    @property
    def nnz(self) -> int:
        """Number of non-zero weights."""
        return int(torch.count_nonzero(self.weight))

    @property
    def _x_zero(self) -> int:
        return 0 if isinstance(self.case, ConvCase) else LINEAR_X_ZERO

    def _real(self, weight: torch.Tensor, factor: int = 1) -> torch.Tensor:
        """Return y in float64: sums of products stay below 2^53, and are exact."""
        x = self._integers.double() - self._x_zero
        rows = (-1, *(1 for _ in self.weight.shape[2:]))
        if isinstance(self.case, ConvCase):
            sums = torch.nn.functional.conv2d(
                x, weight.double(), None, self.case.stride, self.case.padding
            )
        else:
            sums = x @ weight.double().t()
        return (factor * sums + self.bias.view(rows)) * self._scales.view(rows)

    @cached_property
    def _exact(self) -> torch.Tensor:
        return self._real(self.weight)

    def exact(self, precision: str) -> torch.Tensor:
        """Return the exact y of what an engine computes, in steps of its scale, not rounded."""
        if precision == SEVEN_BITS:
            real = self._real(torch.from_numpy(seven_bits(self.weight.numpy())), 2)
        else:
            real = self._exact
        return real / self.quantization.y_scale

    def verify(self, name: str, result: Array, precision: str) -> float:
        """Check a peer's y, and return the worst error in steps of y's scale.

        A uint8 y may be a step beside the exact one, seldom; a float32 one half a step, which an
        engine that rounds it to uint8 loses. An engine that finds the scale of x itself may be a
        step of x away, in every x.

        Raises:
            WrongResultError: the shape or the type differs, or an element is further away.
        """
        exact = self.exact(precision)
        where = f"{name} on {self.case.name}, {self.pattern.name} {self.pattern.sparsity:g}"
        if result.shape != exact.shape or result.dtype != np.dtype(self.io):
            raise WrongResultError(
                f"{where}: expected {self.io} of shape {tuple(exact.shape)}, "
                f"got {result.dtype} of shape {result.shape}"
            )
        y = torch.from_numpy(result).double()
        narrow = self.io == "uint8"
        if narrow:
            error = (y - (exact.round() + self.quantization.y_zero).clamp(0, 255)).abs()
            bound = torch.ones(())
        else:
            y /= self.quantization.y_scale
            zero = self.quantization.y_zero
            # Who rounds y to uint8 saturates at the ends of its range, which is the whole weight's.
            ends = exact.clamp(-zero, 255 - zero)
            error = torch.minimum((y - exact).abs(), (y - ends).abs())
            bound = torch.tensor(0.5 + ROUNDING, dtype=torch.float64)
        if precision == DYNAMIC:
            steps = self.weight.double().abs().flatten(1).sum(1) * self._scales
            bound = bound + steps / self.quantization.y_scale
        # Written so that a NaN counts as wrong.
        wrong = ~(error <= bound)
        off = float((error > 0 if narrow else wrong).double().mean())
        if wrong.any() or (narrow and off > MOST_OFF):
            raise WrongResultError(
                f"{where}: expected y within {float(bound.max()):.3g} steps of the exact result, "
                f"got {float(error.max()):.3g}; {off:.1%} of its elements are off"
            )
        return float(error.max())
