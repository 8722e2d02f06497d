"""The nm format: at most n non-zeros in every m columns, for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparseinfer.formats.format import Format, PrunedWeight
from sparseinfer.formats.on_device import blob, has_shape, packed_by_host
from sparseinfer.formats.value_types import VALUE_TYPES

__all__ = ["FORMAT", "GPU_GROUP", "nm_blob"]

GPU_GROUP = 4
"""The m of N:M that the GPU kernels expand."""


def nm_blob(
    weight: Tensor, groups: int = 1, *, n: int = 2, m: int = 4, value_type: str = "float32"
) -> Tensor:
    """Pack a float32 weight in the nm format, on its device; values are rounded to `value_type`.

    `weight` is as for `csr_blob`. Returns uint8 [bytes].

    Raises:
        ValueError: as `sparseinfer.pack`.

    Example:
        >>> from sparseinfer import pack
        >>> torch.equal(nm_blob(torch.eye(8)), pack(torch.eye(8), "nm"))
        True
    """
    fits = has_shape(weight, groups) and 2 <= m <= 32 and 1 <= n <= m
    if not fits or value_type not in VALUE_TYPES:
        return packed_by_host("nm", weight, groups, n=n, m=m, value_type=value_type)
    # A row of input channels for each output row and kernel position: groups do not cross them.
    rows = weight.movedim(1, -1).flatten(0, -2)
    several_taps = len(rows) != weight.shape[0]
    dtype = getattr(torch, value_type)
    values = _bits(rows, dtype)
    overflow = bool((torch.isfinite(rows) & (values & _MAGNITUDE[dtype] == _INFINITY[dtype])).any())
    count = -(-rows.shape[1] // m)
    lanes = pad(values, (0, count * m - rows.shape[1])).view(len(rows), count, m)
    kept = lanes & _MAGNITUDE[dtype] != 0
    full = kept.sum(dim=2, dtype=torch.uint8)
    if overflow or bool((full > n).any()):
        return packed_by_host("nm", weight, groups, n=n, m=m, value_type=value_type)
    # One lane after the other: it is stored if it is kept, or if it is one of the lowest free ones
    # that fill the group up; its plane is how many are stored before it. Plane n takes the others.
    positions = torch.zeros(n + 1, len(rows), count, dtype=torch.uint8, device=weight.device)
    planes = torch.zeros_like(positions, dtype=values.dtype)
    fillers = n - full
    plane = torch.zeros_like(full)
    for lane in range(m):
        fills = ~kept[:, :, lane] & (fillers > 0)
        stored = kept[:, :, lane] | fills
        at = torch.where(stored, plane, n).to(torch.int64)[None]
        positions.scatter_(0, at, lane)
        # Never -0: a filler's value is +0.
        value = torch.where(kept[:, :, lane], lanes[:, :, lane], 0)
        planes.scatter_(0, at, value[None])
        plane += stored
        fillers -= fills.to(torch.uint8)
    nnz = int(kept.sum())
    params = n, m, int(several_taps)
    return blob("nm", weight, groups, value_type, nnz, params, (0, 0), (planes[:n], positions[:n]))


_MAGNITUDE = {torch.float32: 0x7FFFFFFF, torch.float16: 0x7FFF, torch.bfloat16: 0x7FFF}
"""All bits but the sign."""

_INFINITY = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}


def _bits(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of `weight` in `dtype`, nearest with ties to even.

    NaN keeps its sign and leading payload bits, where torch's conversions and selects of half
    precision may give another NaN.
    """
    bits = weight.contiguous().view(torch.int32)
    if dtype is torch.float32:
        return bits
    drop, quiet = (16, 0x40) if dtype is torch.bfloat16 else (13, 0x200)
    payload = bits >> drop & (2 * quiet - 1)
    nan = bits >> 16 & 0x8000 | _INFINITY[dtype] | torch.where(payload == 0, quiet, payload)
    return torch.where(weight.isnan(), nan.to(torch.int16), weight.to(dtype).view(torch.int16))


def _params(weight: PrunedWeight) -> dict[str, Any]:
    if weight.pattern is None or weight.kind != "n:m":
        return {}
    return dict(zip(FORMAT.options, weight.pattern.sizes, strict=True))


def _suits(weight: PrunedWeight) -> bool:
    return (
        weight.pattern is not None and weight.kind == "n:m" and weight.pattern.sizes[1] == GPU_GROUP
    )


def _stays_dense(weight: PrunedWeight) -> str:
    if weight.op != "conv" or weight.kind != "n:m":
        return ""
    return (
        f"a {weight.pattern} convolution stays dense on a GPU: its arithmetic takes the time, and "
        "expanding weights in front of dense tensor cores cannot shorten that"
    )


FORMAT = Format(
    "nm", options=("n", "m"), narrow="kept", on_device=nm_blob,
    gpu_ops=("linear",), suits=_suits, gains_from=f"N:{GPU_GROUP}", stays_dense=_stays_dense,
    params=_params,
)  # fmt: skip
