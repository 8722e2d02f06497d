"""The weight stream of the mma.sp kernel, written on the device from a packed nm buffer.

Its layout is written down byte by byte in csrc/cuda/LAYOUT.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.triton.nm_planes import NmMeta

__all__ = ["CHUNK_COLUMNS", "TILE_ROWS", "UNIT_BYTES", "weight_stream"]

TILE_ROWS = 32
CHUNK_COLUMNS = 128
UNIT_BYTES = 4608
"""Of one chunk of one row tile: 4096 weights at 1.125 bytes."""


def weight_stream(packed: Tensor, meta: NmMeta) -> Tensor:
    """Rearrange the planes of a packed 1:4 or 2:4 weight in the order of the lanes that read them.

    Args:
        packed: a validated nm buffer, contiguous uint8 [bytes], on any device.
        meta: where its planes lie, `NmMeta.from_info(formats.info(packed))`.

    Returns:
        uint8 [ceil(M / 32) ceil(K / 128) 4608] on the device of `packed`.

    Raises:
        ValueError: the weight is not 1:4 or 2:4 of float16 or bfloat16.

    Source: PTX ISA, "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types".

    Example:
        >>> from sparseinfer import formats
        >>> packed = formats.pack(torch.eye(8).half(), "nm")
        >>> weight_stream(packed, NmMeta.from_info(formats.info(packed))).shape
        torch.Size([4608])
    """
    if meta.m != 4 or meta.n > 2 or meta.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            "expected a 1:4 or 2:4 weight of float16 or bfloat16, got "
            f"{meta.n}:{meta.m} of {str(meta.dtype).removeprefix('torch.')}; "
            "try pack(weight.half(), 'nm')"
        )
    values, positions = _pairs(packed, meta)
    rows, groups = values.shape[1:]
    tiles, chunks = -(-rows // TILE_ROWS), -(-groups * 4 // CHUNK_COLUMNS)
    padding = (0, chunks * CHUNK_COLUMNS // 4 - groups, 0, tiles * TILE_ROWS - rows)
    values = torch.nn.functional.pad(values, padding)
    # Nibbles 0b0100: positions 0 and 1.
    nibbles = positions[0].int() + 4 * positions[1].int()
    nibbles = torch.nn.functional.pad(nibbles, padding, value=4)

    # Rows are (tile, h, hi, g), groups (chunk, step, half, t), as LAYOUT.md names them.
    split = (tiles, 2, 2, 8, chunks, 4, 2, 4)
    # -> tile, chunk, step, h, g, t, half, hi, pair
    lanes = values.view(2, *split).permute(1, 5, 6, 2, 4, 8, 7, 3, 0)
    fragments = lanes.reshape(tiles * chunks, -1).view(torch.uint8)
    shifts = torch.arange(4, dtype=torch.int32, device=packed.device) * 4
    halves = (nibbles.view(split) << shifts).sum(-1, dtype=torch.int32)
    # -> tile, chunk, g, h, half, step, hi
    words = halves.to(torch.uint16).permute(0, 4, 3, 1, 6, 5, 2)
    metadata = words.reshape(tiles * chunks, -1).view(torch.uint8)
    return torch.cat([fragments, metadata], dim=1).flatten()


def _pairs(packed: Tensor, meta: NmMeta) -> tuple[Tensor, Tensor]:
    """Two values and two increasing positions of every group, each [2][M][G]; values as int16."""
    shape = (meta.n, meta.out_features, meta.groups)
    count = meta.n * meta.out_features * meta.groups
    values = packed[meta.values : meta.values + 2 * count].clone().view(torch.int16).view(shape)
    positions = packed[meta.positions : meta.positions + count].view(shape)
    if meta.n == 2:
        return values, positions
    # A +0 beside the one value, at the lowest position that is free.
    first = positions[0] == 0
    filler = torch.zeros_like(values[0])
    return (
        torch.stack([torch.where(first, values[0], filler), torch.where(first, filler, values[0])]),
        torch.stack([torch.zeros_like(positions[0]), positions[0].clamp(min=1)]),
    )
