"""The panel format: unstructured zeros, for the CPU."""

from __future__ import annotations

from typing import Any

from sparseinfer.formats.format import Format, PrunedWeight

__all__ = ["BY_SHAPE", "FEW_TOKENS", "FORMAT", "MANY_TOKENS", "kblock_for"]

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


def _params(weight: PrunedWeight) -> dict[str, Any]:
    params: dict[str, Any] = {}
    if weight.weights != "float32":
        params["weights"] = weight.weights
    if weight.fewest_tokens is not None:
        params["kblock"] = kblock_for(weight.fewest_tokens)
    return params


FORMAT = Format("panel", options=("kblock",), pairs=True, on_cpu=True, params=_params)
