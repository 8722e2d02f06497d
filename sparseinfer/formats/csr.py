"""The csr format: whatever panel cannot store, and many zeros on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparseinfer.formats.format import Format, PrunedWeight
from sparseinfer.formats.on_device import MOST_ELEMENTS, blob, has_shape, packed_by_host

__all__ = ["FORMAT", "csr_blob"]

MOST_DENSITY = 0.3
"""Above it, index and value take about as long to read as the dense weight in half."""


def csr_blob(weight: Tensor, groups: int = 1) -> Tensor:
    """Pack a float32 weight in the csr format, on its device.

    `weight` is `[M, K]`, `[M, C/groups, kw]` or `[M, C/groups, kh, kw]`. Returns uint8 [bytes].

    Raises:
        ValueError: as `sparseinfer.pack`.

    Example:
        >>> from sparseinfer import pack
        >>> torch.equal(csr_blob(torch.eye(8)), pack(torch.eye(8), "csr"))
        True
    """
    if not has_shape(weight, groups) or weight.numel() > MOST_ELEMENTS:
        return packed_by_host("csr", weight, groups)
    rows = weight.flatten(1)
    kept = rows != 0
    starts = pad(kept.sum(dim=1).cumsum(0), (1, 0))
    columns = kept.nonzero()[:, 1]
    nnz = len(columns)
    # Bits: u32 starts below 2^31 are int32's.
    sections = starts.to(torch.int32), columns.to(torch.int32), rows[kept]
    return blob("csr", weight, groups, "float32", nnz, (32,), (nnz, 0), sections)


def _suits(weight: PrunedWeight) -> bool:
    return weight.density <= MOST_DENSITY


FORMAT = Format(
    "csr", narrow="widened", on_device=csr_blob,
    on_cpu=True,  # only for what panel cannot store: K > 65535
    gpu_ops=("linear",), suits=_suits, gains_from=f"{1 - MOST_DENSITY:.0%} zeros",
)  # fmt: skip
