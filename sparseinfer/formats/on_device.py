"""What packing on a weight's own device, in vectorised torch, shares: the native packer's bytes.

The native library packs from the host's memory. A weight on a GPU is packed there; only the
finished buffer visits the host, once, for its checksum. What cannot be packed goes to the native
packer, which says why.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from sparseinfer import native

__all__ = ["MOST_ELEMENTS", "blob", "has_shape", "packed_by_host"]

_HEADER = struct.Struct("<8sIIII4IIIQQ8I2QQQ")
_HEADER_BYTES = 128
_CHECKSUM = slice(120, 128)
_ALIGN = 64
_VERSION = 1
_FORMATS = {format["name"]: format["id"] for format in native.formats()}
_VALUE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
MOST_ELEMENTS = 2**31 - 1
"""What torch counts non-zeros of, on a GPU."""


def has_shape(weight: Tensor, groups: int) -> bool:
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


def packed_by_host(format: str, weight: Tensor, groups: int, **params: Any) -> Tensor:
    packed = native.pack(format, weight.detach().cpu().contiguous().numpy(), groups, **params)
    return torch.from_numpy(packed).to(weight.device)


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
