"""Packing on the weight's own device, in vectorised torch: the native packer's very bytes.

The native library packs from the host's memory. A weight on a GPU is packed there; only the
finished buffer visits the host, once, for its checksum. What cannot be packed goes to the native
packer, which says why.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparseinfer import native

__all__ = ["blob", "csr_blob", "nm_blob"]

_HEADER = struct.Struct("<8sIIII4IIIQQ8I2QQQ")
_HEADER_BYTES = 128
_CHECKSUM = slice(120, 128)
_ALIGN = 64
_VERSION = 1
_FORMATS = {"csr": 1, "nm": 3, "bsr": 4}
_VALUE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
_MOST_ELEMENTS = 2**31 - 1
"""What torch counts non-zeros of, on a GPU."""


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
    if not _has_shape(weight, groups) or weight.numel() > _MOST_ELEMENTS:
        return _native("csr", weight, groups)
    rows = weight.flatten(1)
    kept = rows != 0
    starts = pad(kept.sum(dim=1).cumsum(0), (1, 0))
    columns = kept.nonzero()[:, 1]
    nnz = len(columns)
    # Bits: u32 starts below 2^31 are int32's.
    sections = starts.to(torch.int32), columns.to(torch.int32), rows[kept]
    return blob("csr", weight, groups, "float32", nnz, (32,), (nnz, 0), sections)


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
    fits = _has_shape(weight, groups) and 2 <= m <= 32 and 1 <= n <= m
    if not fits or value_type not in _VALUE_TYPES:
        return _native("nm", weight, groups, n=n, m=m, value_type=value_type)
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
        return _native("nm", weight, groups, n=n, m=m, value_type=value_type)
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


def _has_shape(weight: Tensor, groups: int) -> bool:
    """Whether the header can hold the shape; the native packer words the errors."""
    return (
        2 <= weight.dim() <= 4
        and min(weight.shape) >= 1
        and weight.numel() <= 2**32
        and max(weight.shape[0], weight[0].numel()) < 2**31
        and groups >= 1
        and weight.shape[0] % groups == 0
        and (groups == 1 or weight.dim() > 2)
    )


def _native(format: str, weight: Tensor, groups: int, **params: Any) -> Tensor:
    packed = native.pack(format, weight.detach().cpu().contiguous().numpy(), groups, **params)
    return torch.from_numpy(packed).to(weight.device)


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


def blob(
    format: str,
    weight: Tensor,
    groups: int,
    value_type: str,
    nnz: int,
    params: tuple[int, ...],
    counts: tuple[int, int],
    sections: tuple[Tensor, ...],
) -> Tensor:
    """The buffer of these sections, as csrc/formats/LAYOUT.md lays it out, with its checksum."""
    offsets, total = [], _HEADER_BYTES
    for section in sections:
        offsets.append(total)
        end = total + section.numel() * section.element_size()
        total = (end + 2 * _ALIGN - 1) // _ALIGN * _ALIGN
    shape = (*weight.shape, 0, 0)[:4]
    header = _HEADER.pack(
        b"SPARSINF", _VERSION, _FORMATS[format], _VALUE_TYPES[value_type], weight.dim(), *shape,
        groups, 0, nnz, total, *params, *([0] * (8 - len(params))), *counts, 0, 0,
    )  # fmt: skip
    packed = torch.zeros(total, dtype=torch.uint8, device=weight.device)
    packed[:_HEADER_BYTES] = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(
        packed.device
    )
    for offset, section in zip(offsets, sections, strict=True):
        size = section.numel() * section.element_size()
        packed[offset : offset + size].view(section.dtype).copy_(section.reshape(-1))
    host = packed.cpu()
    native.seal(host.numpy())
    packed[_CHECKSUM] = host[_CHECKSUM].to(packed.device)
    return packed
