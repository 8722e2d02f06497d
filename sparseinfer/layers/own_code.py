"""What a subclass of a torch layer has of its own, which a sparse layer in its place would lack."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from sparseinfer.layers.dense import CONV1D, class_named, matrices

__all__ = ["COMPUTING", "own_code"]

COMPUTING = ("forward", "_conv_forward", "_output_padding")
"""The methods that make up torch's forward of a layer."""

_PLAIN_MEMBERS = {
    *vars(type("_", (), {})), "__init__", "__annotations__", "__constants__", "__qualname__",
    "__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__orig_bases__", "__parameters__", "extra_repr", "reset_parameters",
}  # fmt: skip
"""What the class of a layer may define without doing more than torch's once it is made."""


def own_code(module: nn.Module, base: type[nn.Module]) -> str:
    """What the class of a layer adds to torch's class `base`, and a sparse layer would lack.

    Attributes of the instance count where the class is no class of torch's; names that begin with
    an underscore, as frameworks put them on every module, do not.

    Example:
        >>> class Scaled(nn.Linear):
        ...     scale = 2.0
        >>> own_code(nn.Linear(4, 4), nn.Linear), own_code(Scaled(4, 4), nn.Linear)
        ('', 'has members of its own: scale')
    """
    cls: Any = parametrize.type_before_parametrizations(module)
    if any(getattr(cls, name, None) is not getattr(base, name, None) for name in COMPUTING):
        return "has a forward of its own"
    foreign = [c for c in cls.__mro__ if not issubclass(base, c) and not _is_torchs(c)]
    members = [name for c in foreign for name in vars(c) if name not in _PLAIN_MEMBERS]
    if foreign and not members:
        # Any torch layer with the same arguments has the same attributes.
        with torch.device("meta"):
            plain = {"nf", "nx"} if class_named(module, CONV1D) else vars(base(1, 1, 1))
        masked = {*matrices(module), "weight", "bias"}
        members = [
            name
            for name in vars(module)
            if not (name in plain or name in masked or name.startswith("_"))
        ]
    if members:
        return f"has members of its own: {', '.join(sorted(set(members)))}"
    return ""


def _is_torchs(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.") or cls.__module__ == "typing"
