"""Which packed formats are worth a trial for a layer, by device and by where its zeros are."""

from __future__ import annotations

from typing import Any

import torch

from sparseinfer.convert.scan import Layer
from sparseinfer.formats.packed import BLOCKS, kblock_for
from sparseinfer.layers.kinds import kind_named

__all__ = ["block_for", "formats_for", "pack_params"]

CPU_FORMATS = ("panel", "csr")
"""csr is only for what panel cannot store (K > 65535)."""

GROUP = 4
"""The m of N:M that the GPU kernels expand."""

LEAST_BLOCK = 16
"""Rows and columns of a block that tensor cores take whole."""

CSR_DENSITY = 0.3
"""Above it, index and value of csr take about as long to read as the dense weight in half."""


def formats_for(layer: Layer, device: str) -> tuple[tuple[str, ...], str]:
    """Formats to try on a `device` of this type, and why there are none where that is so.

    On a GPU every one of them is timed; on the CPU the first that can store the weight.
    """
    if device == "cpu":
        return CPU_FORMATS, ""
    pattern = layer.pattern
    kind = pattern.kind if pattern is not None else "unstructured"
    blocks = kind == "block" and pattern is not None and min(pattern.sizes) >= LEAST_BLOCK
    if kind_named(layer.kind).op == "conv":
        if blocks:
            return ("bsr",), ""
        if kind == "n:m":
            return (), (
                f"a {pattern} convolution stays dense on a GPU: its arithmetic takes the time, and "
                "expanding weights in front of dense tensor cores cannot shorten that"
            )
        return (), (
            f"its zeros are {pattern or kind}, and a GPU's convolution kernels skip whole blocks "
            f"of {LEAST_BLOCK}x{LEAST_BLOCK} and more"
        )
    found = []
    if kind == "n:m" and pattern is not None and pattern.sizes[1] == GROUP:
        found.append("nm")
    if blocks:
        found.append("bsr")
    if layer.density <= CSR_DENSITY:
        found.append("csr")
    if found:
        return tuple(found), ""
    return (), (
        f"its zeros are {pattern or kind}, {1 - layer.density:.0%} of the weight: a GPU's kernels "
        f"gain from N:{GROUP}, from whole blocks of {LEAST_BLOCK}x{LEAST_BLOCK} and more, or from "
        f"{1 - CSR_DENSITY:.0%} zeros"
    )


def pack_params(
    layer: Layer, format: str, fewest_tokens: int = 0, value_type: str = "float32"
) -> dict[str, Any]:
    """What `formats.pack` is told of the layer: its pattern, and the least N of its calls.

    `fewest_tokens` is 0 where that is not known. `value_type` is that of panel's values.
    """
    pattern = layer.pattern
    if format == "panel":
        params: dict[str, Any] = {} if value_type == "float32" else {"value_type": value_type}
        if layer.kind == "linear":
            params["kblock"] = kblock_for(fewest_tokens)
        return params
    if format == "nm" and pattern is not None and pattern.kind == "n:m":
        return dict(zip(("n", "m"), pattern.sizes, strict=True))
    if format == "bsr":
        weight = layer.module._parameters.get("weight")
        if weight is not None and weight.layout is torch.sparse_bsr:
            return {"block": weight.values().shape[-1]}
        if pattern is not None and pattern.kind == "block":
            return {"block": block_for(pattern.sizes)}
    return {}


def block_for(sizes: tuple[int, int]) -> int:
    """The edge of bsr's blocks for a weight whose zeros come in blocks of `sizes`.

    The largest that cuts them evenly: no zero is stored then, and a larger block is read faster.
    Where none does, the smallest stores the fewest zeros.

    Example:
        >>> block_for((64, 64)), block_for((32, 96)), block_for((8, 8)), block_for((48, 48))
        (64, 32, 16, 16)
    """
    fitting = [edge for edge in BLOCKS if all(size % edge == 0 for size in sizes)]
    return max(fitting, default=min(BLOCKS))
