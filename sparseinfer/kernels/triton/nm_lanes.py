"""The lane plane of an N:4 weight: a nibble a group, which says what lanes its values stand in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["HALF", "bytes_read", "lane_plane"]

HALF = 128
"""Groups from the low nibble of a byte to its high one."""


def lane_plane(positions: Tensor) -> Tensor:
    """Give the lane plane uint8 [M][C], C = 128 ceil(G / 256), of positions uint8 [n][M][G].

    Bit c of a group's nibble says that one of its values stands in lane c. Byte 128 b + j has
    group 256 b + j in its low half and group 256 b + 128 + j in its high one, so that a kernel
    takes both halves of a tile of bytes in the order they lie in, with no shuffle. Groups past G
    have no lanes.

    Source: the 2-bit metadata of Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021;
    a set of lanes is as large for 2:4 and needs fewer instructions to expand.

    Example:
        >>> lane_plane(torch.tensor([[[0]], [[3]]], dtype=torch.uint8))[0, 0].item()
        9
    """
    rows, groups = positions.shape[1:]
    ones = torch.ones((), dtype=torch.uint8, device=positions.device)
    lanes = torch.zeros(rows, groups, dtype=torch.uint8, device=positions.device)
    for plane in positions:
        lanes |= ones << (plane & 3)
    blocks = -(-groups // (2 * HALF))
    halves = pad(lanes, (0, blocks * 2 * HALF - groups)).view(rows, blocks, 2, HALF)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(rows, blocks * HALF)


def bytes_read(groups: int) -> int:
    """Leading bytes of a row of the lane plane that hold all `groups`; the rest of them is empty.

    Example:
        >>> bytes_read(100), bytes_read(200), bytes_read(300)
        (100, 128, 172)
    """
    full, rest = divmod(groups, 2 * HALF)
    return full * HALF + min(rest, HALF)
