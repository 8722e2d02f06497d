"""Takes the weight of a sparse layer out of a state_dict, packed, or dense to be packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparseinfer import formats
from sparseinfer.formats.table import format_named
from sparseinfer.layers.dense import take_masked

if TYPE_CHECKING:
    from sparseinfer.layers.base import SparseLayer

__all__ = ["check_type", "own_copy", "packed_as", "take_packed"]


def take_packed(layer: SparseLayer, entries: dict[str, Any], prefix: str) -> tuple[str, str]:
    """Leave in `entries` a packed weight for `layer`, the one there or packed from a dense one.

    Returns which of the two it comes from, `packed` or `weight`, and why it is refused: it is taken
    out then. A packed one is yet to be validated.

    Example:
        >>> from sparseinfer import SparseLinear
        >>> entries = {"weight": torch.ones(2, 3)}
        >>> take_packed(SparseLinear(3, 2), entries, ""), list(entries)
        (('weight', ''), ['packed'])
    """
    key, source = f"{prefix}packed", "packed"
    try:
        if key in entries:
            entries[key] = own_copy(entries[key])  # first: what is validated stays as it is
            check_type(entries[key])
            return source, ""
        for name in ("weight", "bias"):
            masked = take_masked(entries, prefix, name)
            if masked is not None:
                entries[f"{prefix}{name}"] = masked
        if f"{prefix}weight" in entries:
            source = "weight"
            entries[key] = packed_as(layer, layer._loaded(entries.pop(f"{prefix}weight")))
    except (TypeError, ValueError) as invalid:
        entries.pop(key, None)
        return source, str(invalid)
    return source, ""


def check_type(packed: Any) -> None:
    """Refuse what is no packed weight by its type alone.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is no buffer of bytes, see `formats.check_buffer`.

    Example:
        >>> check_type(torch.zeros(64, dtype=torch.uint8))
    """
    if not isinstance(packed, Tensor):
        raise TypeError(
            f"expected a packed weight as a uint8 tensor, got {type(packed).__name__}; try the "
            "state_dict of a converted model"
        )
    formats.check_buffer(packed)


def packed_as(layer: SparseLayer, weight: Any) -> Tensor:
    """Pack a dense weight as that of `layer` is packed.

    Raises:
        TypeError: the weight is no floating-point tensor.
        ValueError: it has another shape than the layer's.

    Example:
        >>> from sparseinfer import SparseLinear
        >>> packed_as(SparseLinear(3, 2), torch.ones(2, 3)).dtype
        torch.uint8
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"expected a floating-point weight, got {got}; try weight.float()")
    if tuple(weight.shape) != layer.weight_shape:
        raise ValueError(
            f"expected a weight of shape {list(layer.weight_shape)}, got {list(weight.shape)}; "
            "try a weight of the same architecture"
        )
    format, dtype = "panel", torch.float32
    params: dict[str, Any] = {}
    if layer._is_valid():
        info = layer.handle.info
        format, dtype = layer.format, getattr(torch, info["value_type"])
        row = format_named(format)
        params = {name: info["params"][name] for name in row.options}
        if row.narrow == "refused":  # the packer rounds float32
            dtype, params["weights"] = torch.float32, info["value_type"]
        if layer.handle.is_pairs:
            params["activations"] = "bfloat16"
    with torch.no_grad():
        arranged = layer._arranged(layer, weight.to(dtype))
        return formats.pack(arranged, format, layer.groups, **params)


def own_copy(packed: Any) -> Any:
    """A packed weight in memory of this process: itself where it is that already.

    Example:
        >>> own_copy(torch.zeros(2, dtype=torch.uint8))
        tensor([0, 0], dtype=torch.uint8)
    """
    if type(packed) is not Tensor or packed.device.type != "cpu" or formats.is_own(packed):
        return packed
    with torch.inference_mode(False):
        return packed.clone()
