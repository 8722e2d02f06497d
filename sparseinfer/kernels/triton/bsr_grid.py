"""What a `bsr` packed buffer holds and where, and what its kernels cannot run; no Triton here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparseinfer.formats.handles import DEFAULT_SMS
from sparseinfer.formats.value_types import VALUE_TYPES
from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton import float_limits
from sparseinfer.kernels.triton.arguments import require_format, section

__all__ = ["BsrMeta", "bsr_limits"]


@dataclass(frozen=True)
class BsrMeta:
    """Where a `bsr` packed buffer keeps its sections, and how its weight is cut.

    `rows`, `columns` and `values` are byte offsets of the block rows' starts, of the block columns
    and of the `blocks` blocks [block][block] of type `dtype`. The weight has `channels` inputs in
    each of the taps of `kernel` (height, width; 1 x 1 for a linear layer). `sms`, the device's
    multiprocessors, decides with the shape how the blocks of a row are split among programs.

    Example:
        >>> meta = BsrMeta(100, 40, (3, 3), 1, 32, 5, torch.float16, 128, 256, 384)
        >>> meta.row_blocks, meta.channel_blocks, meta.in_features
        (4, 2, 360)
    """

    out_features: int
    channels: int
    kernel: tuple[int, int]
    groups: int
    block: int
    blocks: int
    dtype: torch.dtype
    rows: int
    columns: int
    values: int
    sms: int = DEFAULT_SMS

    @property
    def row_blocks(self) -> int:
        """Block rows of an ungrouped weight: ceil(M / block)."""
        return -(-self.out_features // self.block)

    @property
    def channel_blocks(self) -> int:
        """Blocks across the channels of one tap: ceil(C / block)."""
        return -(-self.channels // self.block)

    @property
    def in_features(self) -> int:
        """K: the channels of all taps."""
        return self.channels * math.prod(self.kernel)

    @classmethod
    def from_info(cls, info: Mapping[str, Any], sms: int = DEFAULT_SMS) -> BsrMeta:
        """Read the description from what `sparseinfer.formats.info` returns for a `bsr` buffer.

        Raises:
            ValueError: the buffer is not in the `bsr` format.

        Example:
            >>> from sparseinfer import formats
            >>> BsrMeta.from_info(formats.info(formats.pack(torch.eye(40), "bsr", block=16))).blocks
            3
        """
        require_format(info, "bsr")
        height, width = (1, 1, *info["shape"][2:])[-2:]
        return cls(
            out_features=int(info["m"]),
            channels=int(info["shape"][1]),
            kernel=(int(height), int(width)),
            groups=int(info["groups"]),
            block=int(info["params"]["block"]),
            blocks=int(info["params"]["blocks"]),
            dtype=VALUE_TYPES[info["value_type"]],
            rows=int(info["sections"]["rows"]),
            columns=int(info["sections"]["columns"]),
            values=int(info["sections"]["values"]),
            sms=sms,
        )

    def sections(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the starts, the block columns (both int32) and the values, each flat.

        Raises:
            ValueError: the buffer ends before them, or they are not aligned to their size.
        """
        return (
            section(packed, self.rows, self.row_blocks + 1, torch.int32),
            section(packed, self.columns, self.blocks, torch.int32),
            section(packed, self.values, self.blocks * self.block**2, self.dtype),
        )


def bsr_limits(problem: Problem) -> list[str]:
    """Why the `bsr` rows cannot run such a problem; empty when they can.

    Example:
        >>> bsr_limits(Problem("conv", "bsr", torch.device("cuda"), groups=2))[-1]
        'expected groups=1, got groups=2: a block would read one group; try format="panel" on a CPU'
    """
    reasons = float_limits(problem)
    if problem.groups != 1:
        reasons.append(
            f"expected groups=1, got groups={problem.groups}: a block would read one group; "
            'try format="panel" on a CPU'
        )
    return reasons
