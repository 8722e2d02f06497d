"""What warps compute from the weight stream of csrc/cuda/LAYOUT.md, lane by lane, in torch.

Every lane's words are taken as the kernel loads them and given to an `mma.sp.m16n8k32` that is
written from the PTX ISA's tables: which lane holds which element of A, B and C, and which lanes
give the metadata that a sparsity selector names. No code is shared with the packer. Sums are
float64: this proves where elements go, not how the hardware rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = torch.arange(32)
G, T = LANES // 4, LANES % 4  # groupID and threadID_in_group
REGISTERS = torch.arange(4)


def mma_sp(a: Tensor, b: Tensor, metadata: Tensor, selector: int) -> Tensor:
    """C fragments of A B: `a` [U, 32 lanes, 4 registers, 2 halves], `b` the same, `metadata`
    [U, 32 lanes] of 32 bits; returns [U, 32 lanes, 4]. U warps at once.

    Only what the metadata select is multiplied, so a NaN of B elsewhere goes nowhere.
    """
    row = G[:, None] + 8 * (REGISTERS % 2)  # of a lane's register, [32, 4]
    group = T[:, None] + 4 * (REGISTERS // 2)
    # K columns 0-15 have their metadata in the first lane of the pair, 16-31 in the second.
    words = metadata[:, 4 * G[:, None] + 2 * selector + group // 4]
    nibbles = words >> 16 * (row // 8) + 4 * (group % 4) & 0xF
    positions = torch.stack([nibbles & 3, nibbles >> 2], dim=-1)
    assert (positions[..., 0] < positions[..., 1]).all(), "indices must increase"

    values = torch.zeros(len(a), 16, 8, 2, dtype=torch.float64)
    columns = torch.zeros(len(a), 16, 8, 2, dtype=torch.int64)
    values[:, row, group] = a.double()
    columns[:, row, group] = 4 * group[..., None] + positions
    dense_b = torch.zeros(len(a), 32, 8, dtype=torch.float64)
    for register in range(4):
        for half in range(2):
            dense_b[:, 8 * register + 2 * T + half, G] = b[:, :, register, half].double()
    units = torch.arange(len(a))[:, None, None]
    selected = dense_b[units, columns.flatten(2)]  # [U, 16, 16 kept, 8]
    c = (values.flatten(2)[..., None] * selected).sum(2)
    return torch.stack(
        [c[:, G, 2 * T], c[:, G, 2 * T + 1], c[:, G + 8, 2 * T], c[:, G + 8, 2 * T + 1]], dim=-1
    )


def linear(stream: Tensor, x: Tensor, m: int) -> Tensor:
    """x W^T [N, M] in float64, of a weight stream; x is [N, K] of the stream's type."""
    n, k = x.shape
    row_tiles, chunks = -(-m // 32), -(-k // 128)
    units = stream.view(row_tiles, chunks, 9, 32, 16)
    values = units[:, :, :8].contiguous().view(x.dtype).view(row_tiles, chunks, 8, 32, 4, 2)
    metadata = units[:, :, 8].contiguous().view(torch.int32).long() & 0xFFFFFFFF
    padded = torch.zeros(-(-n // 8) * 8, chunks * 128, dtype=x.dtype)
    padded[:n, :k] = x
    y = torch.zeros(len(padded), row_tiles * 32, dtype=torch.float64)
    for chunk in range(chunks):
        for step in range(4):
            first = 128 * chunk + 32 * step
            for token in range(0, n, 8):
                # What ldmatrix brings: register i has columns 8 i + 2 t and the next, of token g.
                column = first + 8 * REGISTERS[:, None] + 2 * T[:, None, None] + torch.arange(2)
                b = padded[token + G[:, None, None], column].expand(row_tiles, 32, 4, 2)
                for h in range(2):
                    a = values[:, chunk, 2 * step + h]
                    c = mma_sp(a, b, metadata[:, chunk, :, step], selector=h)
                    for tile in range(row_tiles):
                        rows = 32 * tile + 16 * h + G
                        y[token + 2 * T, rows] += c[tile, :, 0]
                        y[token + 2 * T + 1, rows] += c[tile, :, 1]
                        y[token + 2 * T, rows + 8] += c[tile, :, 2]
                        y[token + 2 * T + 1, rows + 8] += c[tile, :, 3]
    return y[:n, :m]
