"""Why a layer that has a sparse counterpart has to stay as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sparseinfer.convert.tree import Tree, reads_children
from sparseinfer.layers.adapters import Padded, adapter_of, qualified_name
from sparseinfer.layers.dense import owned_parameters, unusual_tensors
from sparseinfer.layers.hooks import touching_hook
from sparseinfer.layers.kinds import Kind
from sparseinfer.layers.own_code import COMPUTING, own_code

__all__ = ["attention_blocked", "blocked"]

_OF_ATTENTION = {
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k",
    "bias_v", "out_proj", "parametrizations",
}  # fmt: skip


def blocked(module: nn.Module, kind: Kind, tree: Tree) -> str:
    """Why a layer of this kind has to stay as it is; empty where it may be replaced.

    Example:
        >>> from sparseinfer.layers.kinds import kind_named
        >>> layer = nn.Linear(4, 4)
        >>> blocked(layer, kind_named("linear"), Tree(nn.Sequential(layer)))
        ''
    """
    base = kind.class_of(module)
    assert base is not None
    if any(name in vars(module) for name in COMPUTING):
        return "its forward was replaced on the instance"
    adapter = adapter_of(module)
    own = own_code(module, base) if adapter is None else _unused_padding(module)
    if own:
        return f"its class {qualified_name(module)} {own}"
    for parent in tree.parents.get(module, []):
        if reads_children(parent):
            return f"nn.{type(parent).__name__} reads its weight directly, without calling it"
    hook = touching_hook(module)
    if hook:
        return f"its own hook {hook} touches its weight, or may"
    names = kind.weights(module)
    tied = tree.tied([own for name in names for own in owned_parameters(module, name)], module)
    if tied:
        return tied
    refused = kind.refuses(module)
    if refused:
        return refused
    usual = () if adapter is None else adapter.usual
    unusual = unusual_tensors(module, [*names, *kind.biases(module), *usual])
    if unusual:
        return f"it carries more than weight and bias: {', '.join(unusual)}"
    return _unused_masks(module, names)


def _unused_padding(module: Any) -> str:
    """A known forward passes by the padding mode of torch's."""
    mode = getattr(module, "padding_mode", "zeros")
    if mode == "zeros" or isinstance(module, Padded):
        return ""
    return f"has the padding mode {mode}, and a forward that does not use it"


def _unused_masks(module: nn.Module, names: Iterable[str]) -> str:
    """Why a mask beside a plain weight cannot be left out: it would change the weight."""
    for name in names:
        mask = module._buffers.get(f"{name}_mask")
        weight = module._parameters.get(name, module._buffers.get(name))
        if mask is None or weight is None:
            continue
        if mask.shape != weight.shape or not torch.equal(weight * mask.to(weight.dtype), weight):
            return f"its {name}_mask would change its {name}, and nothing seen applies it"
    return ""


def attention_blocked(attention: nn.MultiheadAttention, tree: Tree) -> str:
    """Why the projections of an attention have to stay as they are; empty where they need not.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2)
        >>> attention_blocked(attention, Tree(attention))
        ''
    """
    if "forward" in vars(attention):
        return "the forward of its attention was replaced on the instance"
    own = own_code(attention, nn.MultiheadAttention)
    if own:
        return f"the class {qualified_name(attention)} of its attention {own}"
    hook = touching_hook(attention)
    if hook:
        return f"the hook {hook} of its attention touches its weight, or may"
    unusual = [
        name
        for name in (*attention._parameters, *attention._buffers, *attention._modules)
        if name.removesuffix("_orig").removesuffix("_mask") not in _OF_ATTENTION
    ]
    if unusual:
        return f"its attention carries more than torch's: {', '.join(unusual)}"
    if not tree.is_out_projection(attention.out_proj):
        return "the out_proj of its attention is registered elsewhere too"
    return ""
