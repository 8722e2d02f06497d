"""What an `nm` packed buffer holds and where, and what its kernels cannot run; no Triton here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sparseinfer.formats.handles import DEFAULT_SMS
from sparseinfer.formats.nm import GPU_GROUP
from sparseinfer.formats.value_types import VALUE_TYPES
from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton import float_limits
from sparseinfer.kernels.triton.arguments import require_format
from sparseinfer.kernels.triton.derived import Derived

__all__ = ["NmMeta", "nm_kept", "nm_limits"]


@dataclass(frozen=True)
class NmMeta:
    """Where an `nm` packed buffer keeps its planes, and what they hold.

    `values` and `positions` are byte offsets into the buffer of `n` value planes [M][G] of type
    `dtype` and of `n` uint8 position planes [M][G], with M = `out_features` rows of
    G = ceil(K / m) groups and K = `in_features`. `sms`, the device's multiprocessors, decides with
    the shape how K is split among programs; `derived` keeps the lane plane of the one buffer that
    this describes.

    Example:
        >>> NmMeta(8, 6, n=2, m=4, dtype=torch.float16, values=128, positions=192).groups
        2
    """

    out_features: int
    in_features: int
    n: int
    m: int
    dtype: torch.dtype
    values: int
    positions: int
    sms: int = DEFAULT_SMS
    derived: Derived = field(default_factory=Derived, init=False, repr=False, compare=False)

    @property
    def groups(self) -> int:
        """Groups of m columns in a row: ceil(K / m)."""
        return -(-self.in_features // self.m)

    @classmethod
    def from_info(cls, info: Mapping[str, Any], sms: int = DEFAULT_SMS) -> NmMeta:
        """Read the description from what `sparseinfer.formats.info` returns for an `nm` buffer.

        Raises:
            ValueError: the buffer is not in the `nm` format.

        Example:
            >>> from sparseinfer import formats
            >>> packed = formats.pack(torch.eye(8), "nm", value_type="float16")
            >>> NmMeta.from_info(formats.info(packed)).dtype
            torch.float16
        """
        require_format(info, "nm")
        return cls(
            out_features=int(info["m"]),
            in_features=int(info["k"]),
            n=int(info["params"]["n"]),
            m=int(info["params"]["m"]),
            dtype=VALUE_TYPES[info["value_type"]],
            values=int(info["sections"]["values"]),
            positions=int(info["sections"]["positions"]),
            sms=sms,
        )


def nm_limits(problem: Problem) -> list[str]:
    """Why the `nm.linear.triton` row cannot run such a problem; empty when it can.

    A kernel expands a group of four columns with two nested `tl.join`s of two lanes each.

    Example:
        >>> nm_limits(Problem("linear", "nm", torch.device("cuda"), torch.float16, n=4, m=8))[-1]
        'expected 1:4, 2:4, 3:4 or 4:4 weights, got 4:8; try packing with n=2, m=4'
    """
    reasons = float_limits(problem)
    n, m = problem.n, problem.m
    if m != GPU_GROUP or not 1 <= n <= m:
        reasons.append(
            f"expected 1:4, 2:4, 3:4 or 4:4 weights, got {n}:{m}; try packing with n=2, m=4"
        )
    return reasons


def nm_kept(numel: int, nnz: int, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of the lane plane: a nibble a group.

    Example:
        >>> nm_kept(64, 32, torch.float16, tokens=1)
        8
    """
    return numel // (2 * GPU_GROUP)
