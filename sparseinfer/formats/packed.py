"""Packed weights as torch tensors: pack, unpack and look into the native formats.

A packed weight is one contiguous `uint8` tensor, in memory as it is on disk. The layouts are
written down byte by byte in `csrc/formats`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from sparseinfer import native
from sparseinfer.formats.format import Format
from sparseinfer.formats.handles import peek
from sparseinfer.formats.table import format_named
from sparseinfer.formats.torch_sparse import densified
from sparseinfer.formats.value_types import VALUE_TYPES
from sparseinfer.quantize.scheme import renamed_value_type, scheme_for
from sparseinfer.quantize.weights import quantize_weight
from sparseinfer.timing.machine import check_isa

__all__ = [
    "TARGETS",
    "info",
    "pack",
    "unpack",
]

# Everything that computes comes by here; the doctor asks the machine and goes on.
check_isa()

PAIRED = 2
"""The parameter `g` of bfloat16 values that stand in pairs."""

TARGETS: tuple[str, ...] = tuple(target["name"] for target in native.targets())
"""Names of the machines that a weight can be packed for; `"host"` is this one."""


def pack(
    weight: Tensor,
    format: str = "panel",
    groups: int = 1,
    *,
    weights: str | None = None,
    activations: str | None = None,
    scales: Tensor | None = None,
    **params: Any,
) -> Tensor:
    """Pack a dense weight, or a sparse one of torch's, into one buffer.

    `weight` is float32 (nm and bsr: float16 and bfloat16 too, kept as such; csr: those too, stored
    as float32, so that a GPU reads the values that they were), `[M, K]` of a linear layer, or `[M,
    C/groups, kw]` or `[M, C/groups, kh, kw]` of a convolution. `weights` is the type that values
    are stored in: panel `"float32"`, `"bfloat16"`, which rounds by 2^-9 of each at most and
    computes in float32 unless `activations` is `"bfloat16"` too (pairs of values, which multiply x
    rounded to bfloat16 and are summed in float32), or `"int8"`, by the `scales` `[M]` of output
    rows (None: the largest magnitude of each over 127); nm and bsr `"float32"`, `"float16"` or
    `"bfloat16"`, by default the weight's own. `activations` is what they will be multiplied with,
    see `sparseinfer.quantize.SCHEMES`. `params` are the format's: `kblock` (panel: columns of a K
    block, 0 for one block, `BY_SHAPE` and `MANY_TOKENS` for a choice; see `kblock_for`), `g` (int8:
    1 for quads of any columns, 4 for blocks of 1x4, 0 for whichever stores fewer; bfloat16: 2 for
    pairs, what `activations="bfloat16"` stands for), `n` and `m` (nm), `block` (bsr: edge of the
    square blocks, 16, 32, 64 or 128), and for each `target`, one of `TARGETS`: the machine that
    will run the weight, by default `"host"`. Its bytes follow from the target and not from the
    machine that packs (panel: the K blocks of `BY_SHAPE` and `MANY_TOKENS`). Returns a
    one-dimensional uint8 tensor: nm, csr and bsr are packed on the weight's device and stay there,
    panel is on the CPU. Values equal to 0.0 are dropped (bsr: where all of a block are); NaN and
    Inf are kept. `torch.sparse` tensors and semi-structured ones are read as the weights they stand
    for; a BSR one sets `block`.

    Raises:
        ValueError: the format is unknown, or cannot store this weight (panel: K > 65535, int8:
            NaN or Inf; nm: a group of m columns with more than n non-zeros; bsr: a BSR tensor whose
            blocks are not square, of another size than `block`, or of none that the format has),
            the target or the type of the values is unknown, the scales do not fit the weight, or
            torch cannot read a sparse one.
        TypeError: the weight has another dtype.
        NotImplementedError: the types are not built yet.

    Source: row-pattern panels follow Wilkinson, Cheshmi and Mehri Dehnavi, "Register Tiling for
    Unstructured Sparsity in Neural Network Inference", PLDI 2023.

    Example:
        >>> packed = pack(torch.eye(8), "panel")
        >>> packed.dtype, info(packed)["nnz"]
        (torch.uint8, 8)
    """
    row = format_named(format)
    stored = renamed_value_type(weights, params.pop("value_type", None))
    if stored not in (None, *VALUE_TYPES) or activations is not None:
        scheme_for(stored or "float32", activations)
    if activations == "bfloat16":
        params["g"] = _pairs(row, params.get("g", PAIRED))
    if stored is not None:
        params["value_type"] = stored
    if scales is not None:
        if stored != "int8":
            raise ValueError(
                f"expected scales for int8 weights alone, got some for {stored or 'float32'}; try "
                "weights='int8'"
            )
        quantize_weight(weight, scales)  # which checks them
        params["scales"] = scales.detach().float().cpu().contiguous().numpy()
    params = row.adopted(weight, params)
    weight = densified(weight)
    if weight.dtype in (torch.float16, torch.bfloat16) and row.narrow != "refused":
        if row.narrow == "kept":
            params.setdefault("value_type", str(weight.dtype).removeprefix("torch."))
        weight = weight.float()
    if weight.dtype is not torch.float32:
        raise TypeError(f"expected a float32 weight, got {weight.dtype}; try weight.float()")
    if row.on_device is not None and weight.device.type != "cpu":
        _check_target(params.pop("target", None))
        with torch.inference_mode(False), torch.no_grad():
            return row.on_device(weight.detach(), groups, **params)
    dense = weight.detach().cpu().contiguous().numpy()
    blob = torch.from_numpy(native.pack(format, dense, groups, **params))
    # A copy made by torch starts on a 64-byte boundary, so the kernels read it in place; and it is
    # never an inference tensor, so that a later change in place can be noticed.
    with torch.inference_mode(False):
        return torch.empty(blob.numel(), dtype=torch.uint8, device="cpu").copy_(blob)


def _pairs(format: Format, g: int) -> int:
    """The `g` of values that multiply activations in bfloat16."""
    if not format.pairs or g != PAIRED:
        raise ValueError(
            f"expected the panel format with g={PAIRED} for activations='bfloat16', got "
            f"{format.name} with g={g}; try format='panel' without g"
        )
    return g


def _check_target(name: str | None) -> None:
    """Raise ValueError for an unknown target, as the native library does; nothing else of it
    matters to the formats that a device packs."""
    if name is not None and name not in TARGETS:
        raise ValueError(f"expected a target of {', '.join(TARGETS)}, got {name!r}")


def unpack(packed: Tensor) -> Tensor:
    """Give back the dense float32 weight of a packed buffer, on the buffer's device.

    Raises:
        ValueError: the buffer is not a valid packed weight.

    Example:
        >>> torch.equal(unpack(pack(torch.eye(8))), torch.eye(8))
        True
    """
    return peek(packed).unpack(packed)


def info(packed: Tensor) -> dict[str, Any]:
    """Describe a packed buffer, which is validated unless it is as it was when it last was.

    The keys are `format`, `shape`, `groups`, `nnz`, `nbytes`, `value_type`, `m`, `k`, `params` and
    `sections` (byte offsets).

    Raises:
        ValueError: the buffer is not a valid packed weight.

    Example:
        >>> info(pack(torch.eye(8)))["shape"]
        (8, 8)
    """
    return copy.deepcopy(peek(packed).info)
