"""How a transposed convolution falls in phases, each an ordinary convolution of its own.

With stride s the outputs fall in s phases an axis. Those of one phase are a stride-1 convolution of
x with the taps that reach it, so the phases become output channels of one packed weight, and
interleaving the channels gives the output. A tap that a phase lacks is a zero and costs nothing.

Output o = s q + p of phase p takes x[i] w[k] where o + padding = s i + dilation k. With
dilation k - padding = s e + p that is i = q - e: tap k belongs to phase p at offset e.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Axis", "axes_of", "places", "unphased"]


@dataclass(frozen=True)
class Axis:
    """How one axis of a transposed convolution falls in phases.

    Example:
        >>> Axis(kernel=4, stride=2, padding=1, dilation=1).size(inputs=8, output_padding=0)
        16
    """

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def reach(self) -> int:
        """Outputs beyond stride * (inputs - 1), without output padding: one at the least input."""
        return self.dilation * (self.kernel - 1) + 1 - 2 * self.padding

    @property
    def last(self) -> int:
        """The largest offset e of a tap; not below 0, so that no input has to be cropped."""
        return max(0, (self.dilation * (self.kernel - 1) - self.padding) // self.stride)

    @property
    def first(self) -> int:
        """The smallest offset e of a tap, low enough that the padding after is not negative."""
        return min(-self.padding // self.stride, self.rows(1, 0) - 1)

    @property
    def taps(self) -> int:
        """Taps of the convolution that computes the phases."""
        return self.last - self.first + 1

    def place(self, k: int) -> tuple[int, int]:
        """The phase of tap k, and which tap of that phase's convolution it is."""
        offset, phase = divmod(self.dilation * k - self.padding, self.stride)
        return phase, self.last - offset

    def size(self, inputs: int, output_padding: int) -> int:
        """Outputs for so many inputs."""
        return (inputs - 1) * self.stride + self.reach + output_padding

    def rows(self, inputs: int, output_padding: int) -> int:
        """Outputs of each phase; the last of some phases may lie past the end."""
        return inputs - 1 - -(self.reach + output_padding) // self.stride

    def ends(self, output_padding: int) -> tuple[int, int]:
        """Padding before and after x that gives `rows` outputs, whatever the inputs."""
        return self.last, self.rows(1, output_padding) - 1 - self.first


def axes_of(layer: Any) -> tuple[Axis, ...]:
    """The axes of a transposed convolution, dense or sparse.

    Example:
        >>> from torch import nn
        >>> len(axes_of(nn.ConvTranspose2d(4, 6, 3)))
        2
    """
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return tuple(Axis(*sizes) for sizes in zip(*geometry, strict=True))


def places(axes: Sequence[Axis]) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Indices of every tap of the kernel: in `[..., *kernel]`, and in the weight as phases,
    `[groups, *phases, M/groups, C/groups, *taps]`.

    Example:
        >>> from torch import nn
        >>> next(places(axes_of(nn.ConvTranspose1d(4, 6, 2, stride=2))))[0]
        (Ellipsis, 0)
    """
    every = slice(None)
    for tap in itertools.product(*(range(axis.kernel) for axis in axes)):
        phases, taps = zip(*(axis.place(k) for axis, k in zip(axes, tap, strict=True)), strict=True)
        yield (..., *tap), (every, *phases, every, every, *taps)


def unphased(weight: Tensor, axes: Sequence[Axis], groups: int, shape: Sequence[int]) -> Tensor:
    """The weight `[C, M/groups, *kernel]` of this shape from its phases, flattened to rows.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> axes = axes_of(nn.ConvTranspose1d(4, 6, 2, stride=2))
        >>> unphased(torch.ones(12, 4, 1), axes, 1, (4, 6, 2)).shape
        torch.Size([4, 6, 2])
    """
    phased = weight.view(groups, *(axis.stride for axis in axes), -1, *weight.shape[1:])
    dense = weight.new_empty(tuple(shape))
    per_group = dense.view(groups, -1, *dense.shape[1:]).transpose(1, 2)
    for tap, place in places(axes):
        per_group[tap] = phased[place]
    return dense
