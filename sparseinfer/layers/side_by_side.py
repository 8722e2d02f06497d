"""Several weights of a layer as one matrix, and back.

Whatever looks at layers with one weight (scan, decide, report) sees those of a recurrent layer side
by side. Their places are columns of rows of names: the names of a row stand beside each other, rows
below each other, columns again beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Places", "joined", "taken_apart"]

Places = Sequence[Sequence[Sequence[str]]]


def joined(places: Places, weights: Mapping[str, Tensor]) -> Tensor:
    """Put weights, by name, into one matrix.

    Example:
        >>> joined([[["a", "b"]]], {"a": torch.ones(2, 3), "b": torch.ones(2, 1)}).shape
        torch.Size([2, 4])
    """
    columns = [
        torch.cat([torch.cat([weights[name] for name in row], dim=1) for row in column])
        for column in places
    ]
    return torch.cat(columns, dim=1)


def taken_apart(
    places: Places, shapes: Mapping[str, Sequence[int]], matrix: Tensor
) -> dict[str, Tensor]:
    """The weights of these shapes in a matrix: undoes `joined`.

    Example:
        >>> found = taken_apart([[["a", "b"]]], {"a": (2, 3), "b": (2, 1)}, torch.ones(2, 4))
        >>> found["b"].shape
        torch.Size([2, 1])
    """
    found: dict[str, Tensor] = {}
    widths = [[shapes[name][1] for name in column[0]] for column in places]
    wholes = matrix.split([sum(own) for own in widths], dim=1)
    for column, whole, own in zip(places, wholes, widths, strict=True):
        heights = [shapes[row[0]][0] for row in column]
        for row, part in zip(column, whole.split(heights), strict=True):
            found.update(zip(row, part.split(own, dim=1), strict=True))
    return found
