"""How a packed weight lies beside the dense one, as plain facts that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

from sparseinfer.layers.phases import Axis, unphased

__all__ = ["Arrangement"]


@dataclass(frozen=True)
class Arrangement:
    """A packed weight is the dense one as it is, transposed, or as phases along `axes`.

    `shape` and `groups` are those of a transposed convolution, which alone has phases.

    Example:
        >>> import torch
        >>> Arrangement(transposed=True).undo(torch.ones(2, 3)).shape
        torch.Size([3, 2])
    """

    transposed: bool = False
    axes: tuple[Axis, ...] = ()
    shape: tuple[int, ...] = ()
    groups: int = 1

    def undo(self, weight: Tensor) -> Tensor:
        """The dense weight of an unpacked one.

        Raises:
            ValueError: the unpacked weight has another shape than an arranged one has.
        """
        if self.transposed:
            if weight.dim() != 2:
                raise ValueError(
                    f"expected a matrix, got a weight of shape {list(weight.shape)}; try another "
                    "copy of the file"
                )
            return weight.t().contiguous()
        if not self.axes:
            return weight
        if not self._fits(weight):
            raise ValueError(
                f"expected the phases of a weight of shape {list(self.shape)}, got a weight of "
                f"shape {list(weight.shape)}; try another copy of the file"
            )
        return unphased(weight, self.axes, self.groups, self.shape)

    def _fits(self, weight: Tensor) -> bool:
        """Whether `weight` has a place for every tap, so that nothing else is read or reserved."""
        if len(self.shape) != len(self.axes) + 2 or weight.dim() != len(self.shape):
            return False
        inputs, outputs, *kernel = self.shape
        least = (self.groups, inputs, outputs, *kernel, *(axis.stride for axis in self.axes))
        if min(least) < 1 or inputs % self.groups:
            return False
        if any(axis.padding < 0 or axis.dilation < 1 for axis in self.axes):
            return False
        phases = prod(axis.stride for axis in self.axes)
        rows = (phases * outputs * self.groups, inputs // self.groups)
        taps = tuple(axis.taps for axis in self.axes)
        return kernel == [axis.kernel for axis in self.axes] and weight.shape == (*rows, *taps)
