"""Puts sparse layers in the place of dense ones, in a copy of the model or in the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils import parametrize, prune

from sparseinfer.convert.closes_over import Rebinding, rebind_references
from sparseinfer.convert.scan import brief, evaluating
from sparseinfer.convert.state import reachable_tensors
from sparseinfer.layers.adapters import computes_weight
from sparseinfer.layers.base import SparseLayer
from sparseinfer.layers.fast_paths import FAST_PATH_SWITCHES, leave_fast_paths
from sparseinfer.layers.gates import SparseGates
from sparseinfer.layers.kinds import kind_of
from sparseinfer.layers.projections import Projection

__all__ = ["HOOKS", "Replacement", "lend", "replace"]

Replacement = SparseLayer | SparseGates

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
"""Attributes in which a module keeps its hooks."""

_NOT_CARRIED = (
    "weight", "bias", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight",
    "in_proj_bias", "_compiled_call_impl",
)  # fmt: skip
"""What masks computed, and a compiled call of the dense layer."""


def replace(
    model: nn.Module, swaps: Mapping[nn.Module, Replacement], inplace: bool = False
) -> nn.Module:
    """Replace modules wherever they are registered; a shared module stays shared.

    Hooks and the user's own attributes move to the replacement; pruning's masks do not. Without
    `inplace` the model is deep-copied, and its replaced layers are not: their dense weights exist
    once. Functions that hold modules of the model are copied too, tensors that a backward pass led
    to are copied without it. Replacements of an attention's projections replace the attention.

    Raises:
        TypeError: the model cannot be copied.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> from sparseinfer.layers.linear_conv import SparseLinear
        >>> replace(nn.Sequential(layer), {layer: SparseLinear.from_dense(layer)})[0].format
        'panel'
    """
    whole = _assemble(swaps)
    result = _inplace(model, whole) if inplace else _copied(model, whole)
    leave_fast_paths(result)
    return result


def _assemble(swaps: Mapping[nn.Module, nn.Module]) -> dict[nn.Module, nn.Module]:
    """Turn the replacements of projections into replacements of their attentions.

    Projections that stay dense become plain linear layers.
    """
    result: dict[nn.Module, nn.Module] = {}
    sparse: dict[nn.MultiheadAttention, dict[str, nn.Module]] = {}
    separate: dict[nn.MultiheadAttention, bool] = {}
    for dense, replacement in swaps.items():
        if isinstance(dense, Projection):
            sparse.setdefault(dense.owner, {})[dense.role] = replacement
            separate[dense.owner] = dense.separate
        else:
            result[dense] = replacement
    for attention, layers in sparse.items():
        kind = kind_of(attention)
        assert kind is not None and kind.parts is not None
        with evaluating(attention):
            found = kind.parts(attention, separate[attention])
        parts = {
            layer.role: (layers.get(layer.role) or _left_dense(layer)).requires_grad_(layer.learns)
            for layer in found
        }
        result[attention] = kind.sparse(attention, parts)
    return result


def _left_dense(layer: Projection) -> nn.Module:
    kind = kind_of(layer)
    assert kind is not None
    biases = {name: bias.clone() for name, bias in kind.effective_biases(layer).items()}
    return kind.rebuild(layer, layer.weight.clone(), biases)


def _inplace(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> nn.Module:
    for dense, sparse in swaps.items():
        _carry_over(dense, sparse, vars(dense))
        if (bias := _shared_bias(dense, sparse)) is not None:
            sparse.register_parameter("bias", bias)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in swaps:
                parent._modules[name] = swaps[child]
                _compile_again(parent)
    return swaps.get(model, model)


def _compile_again(parent: nn.Module) -> None:
    """Let what torch.compile made of one layer run the layer that it holds now."""
    if type(parent).__name__ == "OptimizedModule":
        compiled: Any = parent
        compiled._initialize()


def _copied(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> nn.Module:
    # deepcopy takes what it finds in its memo for the copy.
    memo: dict[int, Any] = {id(dense): sparse for dense, sparse in swaps.items()}
    for dense, sparse in swaps.items():
        if (bias := _shared_bias(dense, sparse)) is not None:
            own = sparse.get_parameter("bias").requires_grad_(bias.requires_grad)
            sparse.register_parameter("bias", memo.setdefault(id(bias), own))
    left_behind = {id(value) for dense in swaps for value in vars(dense).values()}
    for tensor in reachable_tensors(model):
        if tensor.grad_fn is not None and id(tensor) not in left_behind:
            # Masked weights, computed anew at the next forward, and activations that were kept:
            # deepcopy refuses both.
            memo.setdefault(id(tensor), tensor.detach().clone())
    rebinding = Rebinding(model, memo)
    try:
        result = copy.deepcopy(model, memo)
        rebinding.fill()
        for dense, sparse in swaps.items():
            _carry_over(dense, sparse, copy.deepcopy(_portable(dense, sparse), memo))
    except (RuntimeError, TypeError, copy.Error) as error:
        raise TypeError(
            "expected a model that copy.deepcopy can copy, got one that holds what it cannot "
            f"({brief(error)}); try inplace=True, which copies nothing"
        ) from error
    rebind_references(result, lambda module: memo.get(id(module)))
    return result


@contextmanager
def lend(
    model: nn.Module, swaps: Mapping[nn.Module, Replacement]
) -> Iterator[Callable[[Mapping[nn.Module, Replacement]], nn.Module]]:
    """Try replacements in the model itself, which is as before when the block ends.

    Yields a function that puts in those of `swaps` that it is given, dense layers for the others,
    and returns the model to call: the replacement where `model` is itself replaced. No tensor is
    copied but those of an attention's projections that stay dense. Masks are applied once, not at
    every forward as pruning's hooks and parametrizations do, so that the dense layers are no slower
    than after `prune.remove`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> from sparseinfer.layers.linear_conv import SparseLinear
        >>> swaps = {model[0]: SparseLinear.from_dense(model[0])}
        >>> with lend(model, swaps) as put:
        ...     type(put(swaps)[0]).__name__
        'SparseLinear'
        >>> isinstance(model[0], SparseLinear)
        False
    """
    assembled: dict[frozenset[nn.Module], dict[nn.Module, nn.Module]] = {}

    def whole(replacements: Mapping[nn.Module, Replacement]) -> dict[nn.Module, nn.Module]:
        key = frozenset(replacements)
        if key not in assembled:
            assembled[key] = _assemble(replacements)
            for dense, sparse in assembled[key].items():
                _carry_over(dense, sparse, _own_hooks(vars(dense)))
                sparse.eval()
        return assembled[key]

    replaced = whole(swaps)
    hooks = {dense: dict(dense._forward_pre_hooks) for dense in replaced}
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and child in replaced
    ]
    switches = [
        (module, name, vars(module)[name])
        for module in model.modules()
        for name in FAST_PATH_SWITCHES
        if name in vars(module)
    ]

    def put(replacements: Mapping[nn.Module, Replacement]) -> nn.Module:
        now = whole(replacements)
        for module, switch, value in switches:
            setattr(module, switch, value)
        for parent, name, dense in places:
            parent._modules[name] = now.get(dense, dense)
            _compile_again(parent)
        result = now.get(model, model)
        leave_fast_paths(result)
        return result

    try:
        for dense in replaced:
            _drop_masks(dense)
        with parametrize.cached():
            yield put
    finally:
        put({})
        for dense, before in hooks.items():
            dense._forward_pre_hooks.clear()
            dense._forward_pre_hooks.update(before)


def _own_hooks(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.copy(value) if key in HOOKS else value for key, value in attributes.items()}


def _shared_bias(dense: nn.Module, sparse: nn.Module) -> nn.Parameter | None:
    """The bias of `dense`, which other modules may hold too, where it is a plain Parameter."""
    own = sparse._parameters.get("bias")
    return None if own is None else dense._parameters.get("bias")


def _portable(dense: nn.Module, sparse: Any) -> dict[str, Any]:
    """What the replacement of `dense` takes over: hooks, and attributes a plain layer lacks."""
    plain, kind = vars(sparse.plain()), kind_of(dense)
    assert kind is not None
    not_carried = {*_NOT_CARRIED, *kind.weights(dense)}
    return {
        key: value
        for key, value in vars(dense).items()
        if key in HOOKS or (key not in plain and key not in not_carried)
    }


def _carry_over(dense: nn.Module, sparse: Any, attributes: Mapping[str, Any]) -> None:
    for key in _portable(dense, sparse):
        vars(sparse)[key] = attributes[key]
    if computed_by := computes_weight(dense):  # often packed from a plain layer
        sparse.computed_by = computed_by
    for number, hook in list(sparse._load_state_dict_pre_hooks.items()):
        # weight_norm's renames entries for the parametrization, which is gone. pickle refuses it.
        if getattr(hook, "hook", hook).__module__ == "torch.nn.utils.parametrizations":
            del sparse._load_state_dict_pre_hooks[number]
    _drop_masks(sparse)


def _drop_masks(module: nn.Module) -> None:
    """Take off the hooks that multiply a weight by its mask; the weight stays as it is."""
    for number, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            del module._forward_pre_hooks[number]
