"""What is ranked when a checkpoint is pruned: single weights, blocks, or the places of N:M."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError

__all__ = ["Structure", "parse_structure"]


@dataclass(frozen=True)
class Structure:
    """The shape of what is pruned together: `kind` is `unstructured`, `block` or `n:m`.

    `sizes` are output rows x input columns of a block, or n and m: n of m consecutive columns are
    kept. A weight `[M, ...]` counts as a matrix `[M, K]`.
    """

    kind: str
    sizes: tuple[int, int] = (1, 1)

    def scores(self, magnitudes: Tensor) -> Tensor:
        """One score for each unit that is pruned: a weight's magnitude, a block's mean one.

        A block at an edge is smaller. N:M has no units that compete across a tensor.
        """
        if self.kind == "unstructured":
            return magnitudes
        height, width = self.sizes
        rows = magnitudes.flatten(1)
        heights = _block_sums(torch.ones_like(rows[:, :1]), height, 1)
        widths = _block_sums(torch.ones_like(rows[:1]), 1, width)
        return _block_sums(rows, height, width) / (heights * widths)

    def units(self, shape: torch.Size) -> int:
        """How many scores a weight of `shape` has."""
        height, width = self.sizes
        return -(-shape[0] // height) * -(-(shape.numel() // shape[0]) // width)

    def spread(self, pruned: Tensor, shape: torch.Size) -> Tensor:
        """The mask of the weights, of `shape`, that the mask of units stands for."""
        if self.kind == "unstructured":
            return pruned
        height, width = self.sizes
        rows = pruned.repeat_interleave(height, 0)[: shape[0]]
        columns = shape.numel() // shape[0]
        return rows.repeat_interleave(width, 1)[:, :columns].reshape(shape)

    def n_of_m(self, magnitudes: Tensor) -> Tensor:
        """The mask of all but the n largest of every m columns; what is left over is kept.

        Of equal magnitudes the later ones are kept.
        """
        n, m = self.sizes
        rows = magnitudes.flatten(1)
        whole = rows.shape[1] - rows.shape[1] % m
        pruned = torch.zeros_like(rows, dtype=torch.bool)
        order = rows[:, :whole].reshape(-1, m).argsort(dim=1, stable=True)
        groups = torch.zeros_like(order, dtype=torch.bool)
        groups.scatter_(1, order[:, : m - n], True)
        pruned[:, :whole] = groups.view(rows.shape[0], whole)
        return pruned.view(magnitudes.shape)

    def __str__(self) -> str:
        separator = {"n:m": ":", "block": "x"}.get(self.kind, "")
        return separator.join(map(str, self.sizes)) if separator else self.kind


def parse_structure(text: str) -> Structure:
    """Read `unstructured`, `2:4` (n of m kept) or `4x1` (a block, output rows x input columns).

    Raises:
        CheckpointError: the text is none of these, or 0 < n < m, block sizes of 1 to 1024 do not
            hold.

    Example:
        >>> parse_structure("2:4")
        Structure(kind='n:m', sizes=(2, 4))
    """
    if text == "unstructured":
        return Structure("unstructured")
    found = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", text)
    if found is not None:
        first, second = int(found.group(1)), int(found.group(3))
        if found.group(2) == ":" and 0 < first < second <= 1024:
            return Structure("n:m", (first, second))
        if found.group(2) == "x" and 1 <= first <= 1024 and 1 <= second <= 1024:
            return Structure("block", (first, second))
    raise CheckpointError(
        f"expected a structure such as unstructured, 2:4 or 4x1, got {text!r}; try unstructured"
    )


def _block_sums(matrix: Tensor, height: int, width: int) -> Tensor:
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -columns % width, 0, -rows % height))
    return padded.view(-(-rows // height), height, -(-columns // width), width).sum((1, 3))
