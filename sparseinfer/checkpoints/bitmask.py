"""One weight in compressed-tensors' bitmask layouts: its non-zeros, and one bit an element.

    compressed   the non-zeros, row-major; sparse-24-bitmask: [rows, C / 2]
    bitmask      uint8, [..., ceil(C / 8)]: bit j % 8 of byte j // 8 is element j of the last
                 dimension
    shape        int64, one entry a dimension (sparse-24-bitmask: as a column)
    row_offsets  int64, where each row starts in `compressed`; sparse-24-bitmask has none

Source: the format as github.com/vllm-project/compressed-tensors 0.3 to 0.12 reads and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.tensors import is_plain

__all__ = ["PARTS", "compress", "compressed_bytes", "decompress"]

PARTS = ("compressed", "bitmask", "shape", "row_offsets")
"""The names of a compressed weight's tensors."""

MAX_ELEMENTS = 1 << 36
MAX_DIMS = 8

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def compress(weight: Tensor) -> dict[str, Tensor]:
    """Compress a weight of one or more dimensions to sparse-bitmask; the parts lie on the CPU.

    Values equal to 0.0 are dropped, -0.0 among them; NaN and Inf are kept.

    Example:
        >>> compress(torch.tensor([[0.0, 5.0, 0.0]]))["bitmask"].tolist()
        [[2]]
    """
    dense = weight.detach().cpu()
    kept = dense != 0
    bits = np.packbits(kept.numpy(), axis=-1, bitorder="little")
    return {
        "compressed": dense[kept],
        "bitmask": torch.from_numpy(bits),
        "shape": torch.tensor(dense.shape, dtype=torch.int64),
        "row_offsets": _row_offsets(kept),
    }


def compressed_bytes(shape: tuple[int, ...], nnz: int, itemsize: int) -> int:
    """The bytes of all parts of a weight of `shape` with `nnz` non-zeros of `itemsize` bytes.

    Example:
        >>> compressed_bytes((4, 16), nnz=6, itemsize=4)
        80
    """
    rows = int(np.prod(shape[:-1], dtype=object))
    return nnz * itemsize + rows * -(-shape[-1] // 8) + 8 * len(shape) + 8 * rows


def decompress(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """Rebuild the dense weight of its parts; without `row_offsets` they are sparse-24-bitmask's.

    Everything is checked before the dense weight is allocated, which has at most eight elements a
    byte of the bitmask. `name` is for the messages.

    Raises:
        CheckpointError: a part is missing or has another dtype or size than the others imply, the
            bits are not as many as the values (2:4: two in four), row_offsets do not fit the bits.

    Example:
        >>> decompress(compress(torch.tensor([[0.0, 5.0, 0.0]])), "weight")
        tensor([[0., 5., 0.]])
    """
    for part in PARTS[:3]:
        if part not in parts:
            raise _damaged(name, f"a tensor {part} beside the others", "none")
    for part, tensor in parts.items():
        if not is_plain(tensor):
            raise _damaged(name, f"a dense {part}", f"{tensor.layout} on {tensor.device}")
    shape = _shape(parts["shape"], name)
    values, bits = parts["compressed"].detach().cpu(), parts["bitmask"].detach().cpu()
    expected = (*shape[:-1], -(-shape[-1] // 8))
    if bits.dtype is not torch.uint8 or tuple(bits.shape) != expected:
        raise _damaged(name, f"a uint8 bitmask {list(expected)}", f"{bits.dtype} {[*bits.shape]}")
    if values.is_complex() or values.dtype.itemsize not in _INTEGERS:
        raise _damaged(name, "real values", str(values.dtype))
    unpacked = np.unpackbits(bits.contiguous().numpy(), axis=-1, bitorder="little").astype(bool)
    if unpacked[..., shape[-1] :].any():
        raise _damaged(name, "zero bits behind each row", "others")
    kept = torch.from_numpy(unpacked[..., : shape[-1]])
    nnz = int(np.count_nonzero(unpacked))
    offsets = parts.get("row_offsets")
    if offsets is None:
        _check_two_in_four(kept, values, name)
    elif values.dim() != 1:
        raise _damaged(name, "values in one dimension", f"{values.dim()}")
    if values.numel() != nnz:
        raise _damaged(name, f"as many values as bits, {nnz}", f"{values.numel()}")
    if offsets is not None:
        wanted = _row_offsets(kept)
        if offsets.dtype is not torch.int64 or not torch.equal(offsets.cpu(), wanted):
            raise _damaged(name, "int64 row_offsets where the bits say each row starts", "others")
    dense = torch.zeros(shape, dtype=values.dtype)
    # As integers of their size: assignment by mask is not there for every float8 type.
    same_size = _INTEGERS[values.dtype.itemsize]
    dense.view(same_size)[kept] = values.contiguous().view(-1).view(same_size)
    return dense


def _shape(stored: Tensor, name: str) -> tuple[int, ...]:
    if stored.dtype is not torch.int64 or not 1 <= stored.numel() <= MAX_DIMS:
        raise _damaged(
            name, f"an int64 shape of 1 to {MAX_DIMS} sizes", f"{stored.dtype} {[*stored.shape]}"
        )
    sizes = tuple(int(size) for size in stored.reshape(-1))
    # As Python integers: the product of hostile sizes does not fit 64 bits.
    if min(sizes) < 1 or int(np.prod(sizes, dtype=object)) > MAX_ELEMENTS:
        raise _damaged(name, f"sizes with a product of 1 to {MAX_ELEMENTS}", f"{list(sizes)}")
    return sizes


def _check_two_in_four(kept: Tensor, values: Tensor, name: str) -> None:
    columns = kept.shape[-1]
    if kept.dim() != 2 or columns % 4:
        raise _damaged(
            name, "two dimensions, the last a multiple of 4 (2:4)", f"{list(kept.shape)}"
        )
    if tuple(values.shape) != (kept.shape[0], columns // 2):
        raise _damaged(
            name, f"2:4 values [{kept.shape[0]}, {columns // 2}]", f"{list(values.shape)}"
        )
    if not bool((kept.view(-1, 4).sum(1) == 2).all()):
        raise _damaged(name, "two bits in every four (2:4)", "others")


def _row_offsets(kept: Tensor) -> Tensor:
    # Along the first dimension only, as compressed-tensors has it for more than two dimensions.
    counts = kept.sum(dim=-1)
    return counts.cumsum(0) - counts if counts.dim() else torch.zeros((), dtype=torch.int64)


def _damaged(name: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{name}: expected {expected}, got {got}; try another copy of the file")
