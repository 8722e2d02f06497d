"""Makes what is timed of a layer: the sparse one in a format, and copies that exceed a cache."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from sparseinfer.convert.layer_report import Candidate
from sparseinfer.convert.platform import Platform
from sparseinfer.convert.replace import Replacement
from sparseinfer.convert.scan import Layer
from sparseinfer.kernels import registry
from sparseinfer.kernels.dispatch import shared_params
from sparseinfer.layers.kinds import kind_named
from sparseinfer.timing.device_time import copies_for
from sparseinfer.timing.rounds import Rotation

__all__ = ["pack_for", "rotated"]


def pack_for(
    layer: Layer, dense: nn.Module, name: str, params: Mapping[str, Any], met: Collection[int],
    platform: Platform,
) -> tuple[Candidate, Replacement | None]:  # fmt: skip
    """The sparse layer in a format, ready for every N it was seen with; None where it cannot be."""
    kind = kind_named(layer.kind)
    try:
        on_cpu = platform.kernels_of(layer.device) == "cpu"
        # The CPU kernels compute in float32; inputs and outputs have the layer's type.
        dtype = torch.float32 if on_cpu else layer.dtype
        registry.select(
            registry.Problem(
                kind.op, name, layer.device, dtype, groups=layer.groups, **shared_params(params)
            )
        )
        if layer.dtype is not dtype:
            dense = copy.deepcopy(dense).float()
        sparse = kind.sparse.from_dense(dense, name, **params).eval()
        if layer.dtype is not dtype:
            sparse.to(layer.dtype)
        if platform.kernels_of(layer.device) == "cuda" and kind.op == "linear":
            for tokens in sorted(met):
                platform.search_algorithm(
                    sparse.packed, "linear", layer.dtype, tokens, sparse.bias is not None
                )
    except (MemoryError, RuntimeError, TypeError, ValueError) as refusal:
        said = str(refusal).splitlines() or [type(refusal).__name__]
        return Candidate(name, reason=said[0]), None
    held = sum(own.numel() for own in sparse.buffers())
    return Candidate(name, packed_bytes=held, params=dict(params)), sparse


def rotated(name: str, layer: nn.Module, x: torch.Tensor, cache: int) -> Rotation:
    """Calls of copies of `layer` that exceed a cache of `cache` bytes."""
    held = sum(own.numel() * own.itemsize for own in (*layer.parameters(), *layer.buffers()))
    copies = [layer]
    for _ in range(copies_for(held, cache) - 1):
        copies.append(copy.deepcopy(layer))
    return Rotation(name, [partial(own, x) for own in copies])
