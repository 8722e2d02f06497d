"""Which weights go together: single ones, n of m, blocks, filters, channels.

A structure sees a weight as [output, input, ...]; its units are what is scored, counted and pruned.
`Pruner` and the pruning of checkpoints share these, and so prune alike. `str` of one is its name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparseinfer.prune.rank import prune_smallest_by_row

__all__ = ["NM", "Block", "Channels", "Filters", "Structure", "Unstructured", "parse_structure"]


class Structure(Protocol):
    """How weights of shape [output, input, ...] form units."""

    def reduce(self, scores: Tensor) -> Tensor:
        """The score of each unit, from the scores of its weights."""

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """The mask of the weights, from that of the units."""

    def alive(self, mask: Tensor) -> Tensor:
        """Which units have a kept weight."""


@dataclass(frozen=True)
class Unstructured:
    """Each weight for itself.

    Example:
        >>> Unstructured().reduce(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def reduce(self, scores: Tensor) -> Tensor:
        """The scores as they are."""
        return scores

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """The mask as it is."""
        return units.reshape(shape)

    def alive(self, mask: Tensor) -> Tensor:
        """The mask as it is."""
        return mask

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class _Slices:
    n: float = 2.0

    _dim = 0

    def reduce(self, scores: Tensor) -> Tensor:
        """The L_n norm of each slice, divided by that of as many ones: layers compare."""
        rows = scores.detach().movedim(self._dim, 0).flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        norm = torch.linalg.vector_norm(rows, ord=self.n, dim=1)
        return norm if math.isinf(self.n) else norm / rows.shape[1] ** (1 / self.n)

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """The slices' flags, repeated over each slice."""
        view = [1] * len(shape)
        view[self._dim] = shape[self._dim]
        return units.reshape(view).expand(shape).contiguous()

    def alive(self, mask: Tensor) -> Tensor:
        """Which slices have a kept weight."""
        return mask.movedim(self._dim, 0).flatten(1).any(dim=1)

    def __post_init__(self) -> None:
        if not self.n > 0:
            raise ValueError(f"expected a norm n > 0, got {self.n}, try n=2")

    def __str__(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Filters(_Slices):
    """Whole output filters (dim 0), ranked by L_n norm. A pruned filter still emits its bias.

    Raises:
        ValueError: unless n > 0.

    Source: Li et al., "Pruning filters for efficient ConvNets", 2016, arXiv:1608.08710.

    Example:
        >>> Filters(n=1).reduce(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
        tensor([2., 1.])
    """


@dataclass(frozen=True)
class Channels(_Slices):
    """Whole input channels (dim 1), ranked by L_n norm.

    Raises:
        ValueError: unless n > 0.

    Example:
        >>> Channels(n=1).reduce(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
        tensor([0.5000, 2.5000])
    """

    _dim = 1


@dataclass(frozen=True)
class Block:
    """Aligned blocks of `height` outputs by `width` inputs, ranked by their mean magnitude.

    A convolution's inputs count as the packed formats count them: channel, kernel row and kernel
    column together. Blocks are cut at the edges. 4x1 suits float32 kernels, 1x4 int8 ones.

    Raises:
        ValueError: height or width below 1.

    Example:
        >>> Block(2, 1).reduce(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
        tensor([[0.5000, 2.5000]])
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected sides >= 1, got {self.height}x{self.width}, try 4x1")

    def reduce(self, scores: Tensor) -> Tensor:
        """Mean magnitudes [blocks down, blocks across]; a cut block's are of what there is."""
        rows = scores.detach().flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        sums, sizes = self._grid(rows.abs()), self._grid(torch.ones_like(rows[:1]).expand_as(rows))
        return sums.sum(dim=(1, 3)) / sizes.sum(dim=(1, 3))

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """The blocks' flags, repeated over each block."""
        rows = units.repeat_interleave(self.height, 0)[: shape[0]]
        columns = shape[1:].numel()
        return rows.repeat_interleave(self.width, 1)[:, :columns].reshape(shape)

    def alive(self, mask: Tensor) -> Tensor:
        """Which blocks have a kept weight."""
        return self._grid(mask.flatten(1).to(torch.uint8)).amax(dim=(1, 3)) > 0

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    def _grid(self, rows: Tensor) -> Tensor:
        down, across = -rows.shape[0] % self.height, -rows.shape[1] % self.width
        padded = torch.nn.functional.pad(rows, (0, across, 0, down))
        return padded.reshape(padded.shape[0] // self.height, self.height, -1, self.width)


@dataclass(frozen=True)
class NM:
    """At most `n` weights kept in every `m` consecutive input channels: 2:4 is NM(2, 4).

    For a convolution the m neighbours are input channels at the same kernel position. Fewer than m
    channels at the end form a group as if padded by zeros. The pattern itself says how much is
    pruned.

    TensorFlow Model Optimization's `sparsity_m_by_n=(m, n)` counts the zeros: use `from_zeros`.

    Raises:
        ValueError: unless 1 <= n < m.

    Source: Mishra et al., "Accelerating sparse deep neural networks", 2021, arXiv:2104.08378.

    Example:
        >>> NM(2, 4) == NM.from_zeros(2, 4), NM.from_zeros(3, 4)
        (True, NM(n=1, m=4))
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"expected 1 <= n < m, got {self.n}:{self.m}, try 2:4")

    @classmethod
    def from_zeros(cls, zeros: int, m: int) -> NM:
        """The pattern with at least `zeros` zeros in every m."""
        return cls(m - zeros, m)

    @property
    def sparsity(self) -> float:
        """The fraction that it prunes where m divides the channels."""
        return 1.0 - self.n / self.m

    def spared(self, shape: torch.Size) -> str:
        """Why a weight [output, input, ...] loses nothing; empty where it may.

        Example:
            >>> NM(2, 4).spared(torch.Size([32, 1, 3, 3]))
            '1 input channel, and 2:4 keeps 2'
        """
        channels = f"{shape[1]} input channel{'s'[: shape[1] > 1]}"
        return f"{channels}, and {self} keeps {self.n}" if shape[1] <= self.n else ""

    def reduce(self, scores: Tensor) -> Tensor:
        """Rows [groups, m] of neighbours; padding scores 0."""
        moved = scores.detach().movedim(1, -1)
        return torch.nn.functional.pad(moved, (0, -moved.shape[-1] % self.m)).reshape(-1, self.m)

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """The rows put back in their places, without the padding."""
        moved = [shape[0], *shape[2:], -(-shape[1] // self.m) * self.m]
        return units.reshape(moved)[..., : shape[1]].movedim(-1, 1).contiguous()

    def alive(self, mask: Tensor) -> Tensor:
        """The mask in rows; padding counts as pruned."""
        return self.reduce(mask)

    def keep(self, scores: Tensor, held: Tensor) -> Tensor:
        """Of each row of `held` the n with the largest scores; of equal ones the later are kept."""
        return prune_smallest_by_row(scores, (held.sum(dim=1) - self.n).clamp(min=0), held)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


_LARGEST = 1024
"""The largest m, and the largest side of a block, that a name may ask for."""


def parse_structure(structure: str | Structure) -> Structure:
    """Return the structure named: "unstructured", "filters", "channels", "2:4", "4x1".

    "2:4" keeps 2 of every 4 consecutive input channels; "4x1" is blocks of 4 output rows by 1 input
    column.

    Raises:
        ValueError: the name is none of these, not 0 < n < m, or m or a side lies past 1024.

    Example:
        >>> parse_structure("4x1"), parse_structure("2:4")
        (Block(height=4, width=1), NM(n=2, m=4))
    """
    if not isinstance(structure, str):
        return structure
    named: dict[str, Structure] = {
        "unstructured": Unstructured(),
        "filters": Filters(),
        "channels": Channels(),
    }
    if structure in named:
        return named[structure]
    found = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", structure, re.ASCII)
    if found is not None:
        first, second = int(found[1]), int(found[3])
        if found[2] == ":" and 0 < first < second <= _LARGEST:
            return NM(first, second)
        if found[2] == "x" and 1 <= min(first, second) <= max(first, second) <= _LARGEST:
            return Block(first, second)
    raise ValueError(
        f"expected a structure such as {', '.join(named)}, 2:4 or 4x1, got {structure!r}; "
        "try unstructured"
    )
