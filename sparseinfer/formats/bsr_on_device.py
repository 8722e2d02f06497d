"""Packing a weight in the bsr format where it lies, in torch: the native packer's bytes.

A GPU cuts, compares and compacts the blocks. The layout is that of csrc/formats/bsr/LAYOUT.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer import native
from sparseinfer.formats.on_device import blob
from sparseinfer.formats.value_types import VALUE_TYPES

__all__ = ["BLOCKS", "bsr_blob"]

MOST_ELEMENTS = 2**31 - 1

BLOCKS = (16, 32, 64, 128)
"""Edges of the blocks of a bsr weight."""


def bsr_blob(
    weight: Tensor, groups: int = 1, *, block: int = 64, value_type: str = "float32"
) -> Tensor:
    """Pack a weight in blocks of edge `block` and values of `value_type`, on the weight's device.

    `weight` is `[M, K]`, `[M, C/groups, kw]` or `[M, C/groups, kh, kw]`, of a floating-point type,
    and returns one uint8 buffer there. One copy goes to the host and back, for the checksum.

    Raises:
        ValueError: a finite weight is beyond the range of `value_type`, the weight has no elements,
            or the format has no such block or value type.

    Example:
        >>> from sparseinfer import pack
        >>> blob = bsr_blob(torch.eye(40), block=16, value_type="float16")
        >>> torch.equal(blob, pack(torch.eye(40), "bsr", block=16, weights="float16"))
        True
    """
    if block not in BLOCKS or value_type not in VALUE_TYPES:
        raise ValueError(
            "expected blocks of 16, 32, 64 or 128 and values of float32, float16 or bfloat16, got "
            f"{block} and {value_type}; try block=64"
        )
    if weight.numel() == 0:
        raise ValueError(
            f"expected a weight with elements, got shape {list(weight.shape)}; try another layer"
        )
    dense = weight.detach()
    # Torch does not keep the bits of a NaN when it narrows, and finds at most so many non-zeros.
    if dense.numel() > MOST_ELEMENTS or dense.isnan().any():
        plain = dense.float().cpu().contiguous().numpy()
        packed = native.pack("bsr", plain, groups, block=block, value_type=value_type)
        return torch.from_numpy(packed).to(weight.device, copy=True)
    values = dense.to(VALUE_TYPES[value_type])
    if (values.isinf() & dense.isfinite()).any():
        raise ValueError(
            f"expected weights in the range of {value_type}, got "
            f"{float(dense[dense.isfinite()].abs().max()):g}; try float32"
        )
    m, channels = weight.shape[:2]
    rows = m // groups
    # [groups, rows, taps, channels], so that a block is a run of channels of one tap.
    values = values.reshape(groups, rows, channels, -1).transpose(2, 3)
    taps = values.shape[2]
    pad = (0, -channels % block, 0, 0, 0, -rows % block)
    values = torch.nn.functional.pad(values, pad) + 0.0  # which turns -0.0 into 0.0
    cut = values.reshape(groups, -1, block, taps, values.shape[3] // block, block)
    cut = cut.permute(0, 1, 3, 4, 2, 5).flatten(2, 3).flatten(0, 1)
    kept = (cut != 0).flatten(2).any(2)  # [block rows, block columns]
    stored = cut[kept]
    starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    columns = kept.nonzero()[:, 1].to(torch.int32)
    nnz, blocks = int(torch.count_nonzero(stored)), len(stored)
    return blob(
        "bsr", weight, groups, value_type, nnz, (block,), (blocks, 0), (starts, columns, stored)
    )
