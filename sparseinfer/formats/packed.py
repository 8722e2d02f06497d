"""Packed weights as torch tensors: pack, unpack and look into the native formats.

A packed weight is one contiguous `uint8` tensor, in memory as it is on disk. The layouts are
written down byte by byte in `csrc/formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from sparseinfer import native
from sparseinfer.formats.bsr_on_device import BLOCKS, bsr_blob
from sparseinfer.formats.on_device import csr_blob, nm_blob
from sparseinfer.formats.patterns import Pattern, detect_pattern
from sparseinfer.formats.torch_sparse import densified
from sparseinfer.timing.machine import check_isa

__all__ = [
    "BLOCKS",
    "FORMATS",
    "MANY_TOKENS",
    "TARGETS",
    "Pattern",
    "as_array",
    "check_format",
    "detect_pattern",
    "host_bytes",
    "info",
    "is_own",
    "kblock_for",
    "pack",
    "unpack",
]

# Everything that computes comes by here; the doctor asks the machine and goes on.
check_isa()

_ALIGNMENT = 64

_ON_DEVICE: dict[str, Callable[..., Tensor]] = {
    "csr": csr_blob,
    "nm": nm_blob,
    "bsr": bsr_blob,
}
"""Formats that a weight on another device than the CPU is packed in there."""

FORMATS: tuple[str, ...] = tuple(format["name"] for format in native.formats())
"""Names of the packed formats."""

TARGETS: tuple[str, ...] = tuple(target["name"] for target in native.targets())
"""Names of the machines that a weight can be packed for; `"host"` is this one."""


FEW_TOKENS = 32
"""So many tokens at most are computed by kernels that read a weight in one go."""

MANY_TOKENS = -2
"""The `kblock` of a linear layer that is called with more than 32 tokens, and never with fewer."""

BY_SHAPE = -1
"""The `kblock` that suits calls of any size."""


def kblock_for(fewest_tokens: int) -> int:
    """The `kblock` to pack a linear layer with whose calls bring at least so many tokens.

    Example:
        >>> kblock_for(1), kblock_for(128)
        (-1, -2)
    """
    return MANY_TOKENS if fewest_tokens > FEW_TOKENS else BY_SHAPE


def check_format(name: str) -> None:
    """Raise ValueError, with the known names, unless `name` is a packed format.

    Example:
        >>> check_format("panel")
    """
    if name not in FORMATS:
        raise ValueError(
            f"expected a format of {', '.join(FORMATS)}, got {name!r}; try format='panel'"
        )


def pack(weight: Tensor, format: str = "panel", groups: int = 1, **params: Any) -> Tensor:
    """Pack a dense weight, or a sparse one of torch's, into one buffer.

    `weight` is float32 (nm and bsr: float16 and bfloat16 too, kept as such; csr: those too, stored
    as float32, so that a GPU reads the values that they were), `[M, K]` of a linear layer, or
    `[M, C/groups, kw]` or `[M, C/groups, kh, kw]` of a convolution. `params` are the format's:
    `kblock` (panel: columns of a K block, 0 for one block, `BY_SHAPE` and `MANY_TOKENS` for a
    choice; see `kblock_for`), `value_type` (panel: `"bfloat16"` rounds the values, by 2^-9 of each
    at most, and computes in float32; `"int8"` stores `round(w / scale)`, -128 to 127), `scales` and
    `g` (int8: float32 `[M]`, by default max|w| / 127 of each row; 1 for quads of any columns, 4 for
    blocks of 1x4, 0 for whichever stores fewer), `n` and `m` (nm), `block` (bsr: edge of the
    blocks, 16, 32, 64 or 128), and for each `target`, one of `TARGETS`: the machine that will run
    the weight, by default `"host"`. Its bytes follow from the target and not from the machine that
    packs (panel: the K blocks of `BY_SHAPE` and `MANY_TOKENS`). Returns a one-dimensional uint8
    tensor: nm, csr and bsr are packed on the weight's device and stay there, panel is on the
    CPU. Values equal to 0.0 are dropped (bsr: where all of a block are); NaN and Inf are kept.
    `torch.sparse` tensors and semi-structured ones are read as the weights they stand for; a
    BSR one sets `block`.

    Raises:
        ValueError: the format is unknown, or cannot store this weight (panel: K > 65535, int8:
            NaN or Inf; nm: a group of m columns with more than n non-zeros; bsr: a BSR tensor whose
            blocks are not square, of another size than `block`, or of none that the format has),
            the target is unknown, or torch cannot read a sparse one.
        TypeError: the weight has another dtype.

    Source: row-pattern panels follow Wilkinson, Cheshmi and Mehri Dehnavi, "Register Tiling for
    Unstructured Sparsity in Neural Network Inference", PLDI 2023.

    Example:
        >>> packed = pack(torch.eye(8), "panel")
        >>> packed.dtype, info(packed)["nnz"]
        (torch.uint8, 8)
    """
    check_format(format)
    if format == "bsr" and weight.layout is torch.sparse_bsr:
        params["block"] = _block_of(weight, params.get("block"))
    weight = densified(weight)
    if format == "csr" and weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    if format in ("nm", "bsr") and weight.dtype in (torch.float16, torch.bfloat16):
        params.setdefault("value_type", str(weight.dtype).removeprefix("torch."))
        weight = weight.float()
    if weight.dtype is not torch.float32:
        raise TypeError(f"expected a float32 weight, got {weight.dtype}; try weight.float()")
    if format in _ON_DEVICE and weight.device.type != "cpu":
        _check_target(params.pop("target", None))
        with torch.inference_mode(False), torch.no_grad():
            return _ON_DEVICE[format](weight.detach(), groups, **params)
    dense = weight.detach().cpu().contiguous().numpy()
    blob = torch.from_numpy(native.pack(format, dense, groups, **params))
    # A copy made by torch starts on a 64-byte boundary, so the kernels read it in place; and it is
    # never an inference tensor, so that a later change in place can be noticed.
    with torch.inference_mode(False):
        return torch.empty(blob.numel(), dtype=torch.uint8, device="cpu").copy_(blob)


def _check_target(name: str | None) -> None:
    """Raise ValueError for an unknown target, as the native library does; nothing else of it
    matters to the formats that a device packs."""
    if name is not None and name not in TARGETS:
        raise ValueError(f"expected a target of {', '.join(TARGETS)}, got {name!r}")


def _block_of(weight: Tensor, asked: int | None) -> int:
    """The edge of a BSR tensor's blocks, which is to be that of the packed ones."""
    height, width = weight.values().shape[-2:]
    if height != width or height not in BLOCKS or (asked is not None and asked != height):
        raise ValueError(
            f"expected square blocks of {asked or '16, 32, 64 or 128'} in the BSR weight, got "
            f"{height}x{width}; try weight.to_dense(), or to_sparse_bsr(64) of it"
        )
    return int(height)


def unpack(packed: Tensor) -> Tensor:
    """Give back the dense float32 weight of a packed buffer, on the buffer's device.

    Raises:
        ValueError: the buffer is not a valid packed weight.

    Example:
        >>> torch.equal(unpack(pack(torch.eye(8))), torch.eye(8))
        True
    """
    return torch.from_numpy(native.unpack(as_array(host_bytes(packed)))).to(packed.device)


def info(packed: Tensor) -> dict[str, Any]:
    """Validate a packed buffer and describe it.

    The keys are `format`, `shape`, `groups`, `nnz`, `nbytes`, `value_type`, `m`, `k`, `params` and
    `sections` (byte offsets).

    Raises:
        ValueError: the buffer is not a valid packed weight.

    Example:
        >>> info(pack(torch.eye(8)))["shape"]
        (8, 8)
    """
    return native.info(as_array(host_bytes(packed)))


def host_bytes(packed: Tensor) -> Tensor:
    """The buffer as the native library reads it: itself, or a copy that is contiguous, in the
    host's memory, aligned (safetensors places tensors at any address) and of this process alone.

    What is validated has to stay as it is: a file that is mapped, shared memory and an array of
    numpy's change with their owner, and torch counts no write.

    Raises:
        ValueError: `packed` is not a 1-dimensional uint8 tensor, or its memory was released.

    Example:
        >>> host_bytes(torch.zeros(4, dtype=torch.uint8)[::2]).stride()
        (1,)
    """
    check_buffer(packed)
    # What the transforms of torch.func make of a tensor has no memory.
    with temporarily_clear_interpreter_stack():
        memory = packed.detach().cpu().contiguous()
        if memory.data_ptr() % _ALIGNMENT or not is_own(memory):
            memory = torch.empty(memory.numel(), dtype=torch.uint8, device="cpu").copy_(memory)
        return memory


def as_array(memory: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a buffer of `host_bytes` for the native library.

    `Tensor.numpy()` marks the memory as shared, see `is_own`.

    Example:
        >>> as_array(torch.ones(2, dtype=torch.uint8))
        array([1, 1], dtype=uint8)
    """
    return np.asarray(_Bytes(memory))


class _Bytes:
    """What an array is made of; the array holds it, and it the memory."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "data": (memory.data_ptr(), True), "shape": (memory.numel(),), "typestr": "|u1",
            "version": 3,
        }  # fmt: skip


def is_own(tensor: Tensor) -> bool:
    """Whether torch allocated the memory of a tensor on the host, for this process alone.

    Example:
        >>> is_own(torch.zeros(4)), is_own(torch.frombuffer(bytearray(4), dtype=torch.uint8))
        (True, False)
    """
    storage = tensor.untyped_storage()
    return storage.resizable() and not storage.is_shared()


def check_buffer(packed: Tensor) -> None:
    """Raise ValueError unless `packed` is a 1-dimensional uint8 tensor with its memory behind it.

    Example:
        >>> check_buffer(torch.zeros(4, dtype=torch.uint8))
    """
    if packed.dtype is not torch.uint8 or packed.dim() != 1:
        raise ValueError(
            f"expected a packed weight as a 1-dimensional uint8 tensor, got {packed.dim()} "
            f"dimensions of {packed.dtype}; try sparseinfer.pack(weight)"
        )
    if packed.numel() and packed.device.type != "meta":
        last = packed.storage_offset() + (packed.numel() - 1) * packed.stride(0)
        if packed.untyped_storage().nbytes() <= last:
            raise ValueError(
                f"expected a packed weight of {packed.numel()} bytes, got one whose storage was "
                "released; try converting the layer again"
            )
