"""Puts sparse layers in the place of dense ones, in a copy of the model or in the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sparseinfer.modules import SparseLayer
from sparseinfer.weights import build_dense

__all__ = ["lend", "replace"]

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


def replace(
    model: nn.Module, swaps: Mapping[nn.Module, SparseLayer], inplace: bool = False
) -> nn.Module:
    """Replace modules wherever they are registered; a shared module stays shared.

    Hooks and the user's own attributes move to the replacement; pruning's masks do not. Without
    `inplace` the model is deep-copied, and its replaced layers are not: their dense weights exist
    once.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> from sparseinfer.modules import SparseLinear
        >>> replace(nn.Sequential(layer), {layer: SparseLinear.from_dense(layer)})[0].format
        'panel'
    """
    if inplace:
        for dense, sparse in swaps.items():
            _carry_over(dense, sparse, vars(dense))
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if child is not None and child in swaps:
                    parent._modules[name] = swaps[child]
        return swaps.get(model, model)
    # deepcopy takes what it finds in its memo for the copy.
    memo: dict[int, Any] = {id(dense): sparse for dense, sparse in swaps.items()}
    with _copyable(model, swaps):
        result = copy.deepcopy(model, memo)
        for dense, sparse in swaps.items():
            _carry_over(dense, sparse, copy.deepcopy(_portable(dense, sparse), memo))
    return result


@contextmanager
def lend(
    model: nn.Module, swaps: Mapping[nn.Module, SparseLayer]
) -> Iterator[Callable[[Mapping[nn.Module, SparseLayer]], nn.Module]]:
    """Try replacements in the model itself, which is as before when the block ends.

    Yields a function that puts in those of `swaps` that it is given, dense layers for the others,
    and returns the model to call: the replacement where `model` is itself replaced. No tensor is
    copied. Masks are applied once, not at every forward as pruning's hooks and parametrizations do,
    so that the dense layers are no slower than after `prune.remove`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> from sparseinfer.modules import SparseLinear
        >>> swaps = {model[0]: SparseLinear.from_dense(model[0])}
        >>> with lend(model, swaps) as put:
        ...     type(put(swaps)[0]).__name__
        'SparseLinear'
        >>> isinstance(model[0], SparseLinear)
        False
    """
    hooks = {dense: dict(dense._forward_pre_hooks) for dense in swaps}
    for dense, sparse in swaps.items():
        attributes = {
            key: copy.copy(value) if key in _HOOKS else value for key, value in vars(dense).items()
        }
        _carry_over(dense, sparse, attributes)
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and child in swaps
    ]

    def put(replacements: Mapping[nn.Module, SparseLayer]) -> nn.Module:
        for parent, name, dense in places:
            parent._modules[name] = replacements.get(dense, dense)
        return replacements.get(model, model)

    try:
        for dense in swaps:
            _drop_masks(dense)
        with parametrize.cached():
            yield put
    finally:
        put({})
        for dense, before in hooks.items():
            dense._forward_pre_hooks.clear()
            dense._forward_pre_hooks.update(before)


def _portable(dense: nn.Module, sparse: SparseLayer) -> dict[str, Any]:
    """What the replacement of `dense` takes over: hooks, and attributes a plain layer lacks."""
    shape = torch.empty(sparse.weight_shape, device="meta")
    plain = vars(build_dense(sparse, shape, None))
    return {
        key: value
        for key, value in vars(dense).items()
        if key in _HOOKS or (key not in plain and key not in ("weight", "bias"))
    }


def _carry_over(dense: nn.Module, sparse: SparseLayer, attributes: Mapping[str, Any]) -> None:
    for key in _portable(dense, sparse):
        vars(sparse)[key] = attributes[key]
    _drop_masks(sparse)


def _drop_masks(module: nn.Module) -> None:
    """Take off the hooks that multiply a weight by its mask; the weight stays as it is."""
    for number, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            del module._forward_pre_hooks[number]


@contextmanager
def _copyable(model: nn.Module, swaps: Mapping[nn.Module, SparseLayer]) -> Iterator[None]:
    """Detach for a while what deepcopy refuses: the masked weights that pruning's hooks keep.

    They are computed anew at the next forward, in the model and in its copy.
    """
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        attributes = vars(module)
        for key, value in attributes.items():
            if module not in swaps and isinstance(value, Tensor) and value.grad_fn is not None:
                held.append((attributes, key, value))
    try:
        for attributes, key, value in held:
            attributes[key] = value.detach()
        yield
    finally:
        for attributes, key, value in held:
            attributes[key] = value
