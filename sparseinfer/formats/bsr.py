"""The bsr format: whole blocks of zeros, for a GPU, which cuts, compares and compacts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparseinfer.formats.format import Format, PrunedWeight
from sparseinfer.formats.on_device import MOST_ELEMENTS, blob, packed_by_host
from sparseinfer.formats.value_types import VALUE_TYPES

__all__ = ["BLOCKS", "FORMAT", "block_for", "bsr_blob"]

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
        >>> options = {"block": 16, "value_type": "float16"}
        >>> torch.equal(bsr_blob(torch.eye(40), **options), pack(torch.eye(40), "bsr", **options))
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
        return packed_by_host("bsr", dense.float(), groups, block=block, value_type=value_type)
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


def block_for(sizes: tuple[int, int]) -> int:
    """The edge of the blocks for a weight whose zeros come in blocks of `sizes`.

    The largest that cuts them evenly: no zero is stored then, and a larger block is read faster.
    Where none does, the smallest stores the fewest zeros.

    Example:
        >>> block_for((64, 64)), block_for((32, 96)), block_for((8, 8)), block_for((48, 48))
        (64, 32, 16, 16)
    """
    fitting = [edge for edge in BLOCKS if all(size % edge == 0 for size in sizes)]
    return max(fitting, default=min(BLOCKS))


def _adopted(weight: Tensor, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters for a BSR tensor of torch's, whose blocks are to be the packed ones."""
    if weight.layout is not torch.sparse_bsr:
        return dict(params)
    asked = params.get("block")
    height, width = weight.values().shape[-2:]
    if height != width or height not in BLOCKS or (asked is not None and asked != height):
        raise ValueError(
            f"expected square blocks of {asked or '16, 32, 64 or 128'} in the BSR weight, got "
            f"{height}x{width}; try weight.to_dense(), or to_sparse_bsr(64) of it"
        )
    return {**params, "block": int(height)}


def _params(weight: PrunedWeight) -> dict[str, Any]:
    if weight.weight is not None and weight.weight.layout is torch.sparse_bsr:
        return {"block": weight.weight.values().shape[-1]}
    if weight.pattern is not None and weight.kind == "block":
        return {"block": block_for(weight.pattern.sizes)}
    return {}


def _suits(weight: PrunedWeight) -> bool:
    pattern = weight.pattern
    return pattern is not None and weight.kind == "block" and min(pattern.sizes) >= min(BLOCKS)


FORMAT = Format(
    "bsr", options=("block",), narrow="kept", on_device=bsr_blob, adopted=_adopted,
    gpu_ops=("linear", "conv"), suits=_suits,
    gains_from="whole blocks of {0}x{0} and more".format(min(BLOCKS)),  # what tensor cores take
    params=_params,
)  # fmt: skip
