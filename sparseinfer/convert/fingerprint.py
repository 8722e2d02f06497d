"""What decides how long a model takes, hashed or in words: timings of it are kept under that."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten

from sparseinfer.convert.layer_report import LayerReport
from sparseinfer.convert.observe import Example
from sparseinfer.convert.occupancy import bucket

__all__ = ["choices_of", "distinct", "fingerprint", "signature"]

MOST_EXAMPLES = 4
"""Distinct examples that the model is timed at: the largest."""


def fingerprint(model: nn.Module) -> str:
    """A hash of what decides how long a model takes, but for the values of its weights.

    That is the class, the printed settings, the plain attributes and the code of every module, that
    of all methods of its class and of its hooks included, and the shapes, strides and types of its
    tensors.

    Example:
        >>> fingerprint(nn.Linear(4, 4)) == fingerprint(nn.Linear(4, 4))
        True
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        cls = type(module)
        digest.update(f"{name} {cls.__module__}.{cls.__qualname__} {module.extra_repr()}".encode())
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_"):
                digest.update(f"{key} {_plain(value)}".encode())
        for base in cls.__mro__:
            if not base.__module__.startswith("torch."):
                for key, member in sorted(vars(base).items()):
                    digest.update(key.encode())
                    _digest_code(digest, getattr(member, "__code__", None))
        _digest_code(digest, getattr(vars(module).get("forward"), "__code__", None))
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            digest.update(getattr(hook, "__qualname__", type(hook).__qualname__).encode())
            _digest_code(digest, getattr(hook, "__code__", None))
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                digest.update(f"{key} {_describe(tensor)}".encode())
    return digest.hexdigest()[:16]


def _digest_code(digest: Any, code: Any) -> None:
    """Add compiled code, with its constants and the functions defined in it."""
    if code is None:
        return
    digest.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _digest_code(digest, constant)
        else:
            digest.update(_plain(constant).encode())


def _plain(value: Any) -> str:
    """A value that decides what a forward does, printed; of others no more than the type."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(_plain, value)))})"
    if isinstance(value, dict):
        return str(sorted(f"{key!r}: {_plain(own)}" for key, own in value.items()))
    if callable(getattr(value, "to_dict", None)):  # the configurations of transformers
        return f"{type(value).__name__} {_plain(value.to_dict())}"
    return type(value).__name__


def choices_of(layers: Iterable[LayerReport]) -> str:
    """Which layers run sparse, how, and at which inputs: their number, and a hash."""
    lines = [
        f"{found.name} {found.format} {sorted(found.params.items())} {found.pattern} "
        f"{bucket(1 - found.sparsity):g} {found.occupancy} {found.inputs}"
        for found in layers
    ]
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
    return f"{len(lines)} layers, {digest}"


def distinct(examples: Sequence[Example]) -> list[tuple[Example, float]]:
    """Examples that differ in shapes, the largest of them, and the share that each has."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(json.dumps(signature(example)), []).append(example)
    chosen = sorted(groups.values(), key=lambda group: -_elements(group[0]))[:MOST_EXAMPLES]
    total = sum(map(len, chosen))
    return [(group[0], len(group) / total) for group in chosen]


def _elements(example: Example) -> int:
    return sum(leaf.numel() for leaf in tree_flatten(example)[0] if isinstance(leaf, Tensor))


def signature(example: Example) -> list[str]:
    """What of an example decides how long a model takes: shapes and types, and plain values."""
    leaves, structure = tree_flatten(example)
    return [*map(_describe, leaves), str(structure)]


def _describe(leaf: object) -> str:
    if isinstance(leaf, Tensor) and not is_lazy(leaf):
        return f"{leaf.dtype} {list(leaf.shape)} {list(leaf.stride())}"
    plain = isinstance(leaf, bool | int | float | str | None)
    return repr(leaf) if plain else type(leaf).__qualname__
