"""Masks as packed bits, in a dictionary that torch.load reads with weights_only=True."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["load", "save"]

VERSION = 1


def save(masks: Mapping[str, Tensor], steps: int, sums: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return version, step, masks (uint8 bits, first element in the highest bit, and shape), sums.

    Example:
        >>> save({"w": torch.tensor([True, False])}, 3, {})["masks"]["w"]["bits"]
        tensor([128], dtype=torch.uint8)
    """
    packed = {
        name: {
            "bits": torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))),
            "shape": list(mask.shape),
        }
        for name, mask in masks.items()
    }
    return {"version": VERSION, "steps": steps, "masks": packed, "sums": dict(sums)}


def load(
    state: Mapping[str, Any], like: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int, dict[str, Tensor]]:
    """Return masks, step and sums of a state whose masks have the names and shapes of `like`.

    Raises:
        ValueError: the state is of another version, malformed, or of other weights.

    Example:
        >>> like = {"w": torch.tensor([True, False])}
        >>> load(save(like, 3, {}), like)[0]["w"].tolist()
        [True, False]
    """
    version = state.get("version")
    if version != VERSION:
        raise ValueError(f"expected a pruner's state of version {VERSION}, got {version!r}")
    steps, packed, sums = state.get("steps"), state.get("masks"), state.get("sums")
    if not isinstance(steps, int) or steps < 0 or not isinstance(packed, Mapping):
        raise ValueError("expected a pruner's state with steps and masks, got something else")
    if set(packed) != set(like):
        odd = sorted(set(packed) ^ set(like))
        raise ValueError(
            f"expected the state of the same weights, got one that differs in {odd[:5]}, "
            "try the same targets and ignore"
        )
    masks = {name: _unpack(name, packed[name], mask) for name, mask in like.items()}
    if not isinstance(sums, Mapping) or any(
        name not in like or not isinstance(value, Tensor) or value.shape != like[name].shape
        for name, value in sums.items()
    ):
        raise ValueError("expected sums of the weights' shapes in the state, got others")
    return masks, steps, dict(sums)


def _unpack(name: str, entry: Any, like: Tensor) -> Tensor:
    bits = entry.get("bits") if isinstance(entry, Mapping) else None
    count = like.numel()
    if (
        not isinstance(bits, Tensor)
        or bits.dtype != torch.uint8
        or bits.numel() != (count + 7) // 8
        or entry.get("shape") != list(like.shape)
    ):
        raise ValueError(
            f"expected the bits of a mask of shape {tuple(like.shape)} for {name!r}, "
            "got something else, try the state that was saved with this model"
        )
    flat = np.unpackbits(bits.cpu().numpy().reshape(-1), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(like.shape).to(like.device)
