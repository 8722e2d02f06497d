"""The projections of torch's attention as linear layers of their own, to be weighed one by one.

`nn.MultiheadAttention` multiplies by weights that belong to no layer that it calls. `projections`
gives each such weight a stand-in layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.layers.dense import effective, owned_parameters

__all__ = ["Projection", "attends_another", "called", "projections"]

_ARGUMENTS = {"k_proj": (1, "key"), "v_proj": (2, "value")}
"""The argument of the attention that a projection reads; the others read the query."""


class Projection(nn.Linear):
    """Stands for one projection of an attention: `in_proj`, `q_proj`, `k_proj`, `v_proj` or
    `out_proj`.

    It shares the attention's weight and is part of no model. `parameters_read` are those behind its
    weight; `learns` tells whether one of its parameters takes gradients.
    """

    def __init__(
        self, owner: nn.MultiheadAttention, role: str, separate: bool, weight: Tensor,
        bias: Tensor | None, parameters_read: list[nn.Parameter], learns: bool,
    ) -> None:  # fmt: skip
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        # Not as a submodule: the attention is no part of its projection.
        vars(self).update(owner=owner, parameters_read=parameters_read)
        self.role = role
        self.learns = learns
        self.separate = separate
        self.train(owner.training)

    owner: nn.MultiheadAttention
    parameters_read: list[nn.Parameter]

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What this projection multiplies by in a call of its attention.

        The input of `out_proj` is no argument; it has the shape of the query.
        """
        place, name = _ARGUMENTS.get(self.role, (0, "query"))
        x = args[place] if place < len(args) else kwargs.get(name)
        if self.role == "out_proj" and isinstance(x, Tensor) and not x.is_nested:
            return torch.empty(x.shape, dtype=x.dtype, device="meta")
        return x


def projections(attention: nn.MultiheadAttention, separate: bool) -> list[Projection]:
    """The projections of an attention, whose weights may be masked or parametrized.

    One projection makes query, key and value at once, unless they have different sizes or are
    asked for `separate`: an attention between two sequences needs them apart.

    Raises:
        ValueError: a weight is computed by a hook and cannot be read.

    Example:
        >>> [layer.role for layer in projections(nn.MultiheadAttention(8, 2), separate=False)]
        ['in_proj', 'out_proj']
    """
    found = []
    bias = effective(attention, "in_proj_bias")
    biases: list[Tensor | None] = [None] * 3 if bias is None else list(bias.chunk(3))

    def add(role: str, name: str, weight: Tensor, bias: Tensor | None) -> None:
        read = owned_parameters(attention, name)
        learns = _learn([*read, *owned_parameters(attention, "in_proj_bias")])
        found.append(Projection(attention, role, separate, weight, bias, read, learns))

    if attention._qkv_same_embed_dim:
        weight = _required(attention, "in_proj_weight")
        if separate:
            for role, part, own in zip("qkv", weight.chunk(3), biases, strict=True):
                add(f"{role}_proj", "in_proj_weight", part, own)
        else:
            add("in_proj", "in_proj_weight", weight, bias)
    else:
        separate = True
        for role, own in zip("qkv", biases, strict=True):
            name = f"{role}_proj_weight"
            add(f"{role}_proj", name, _required(attention, name), own)
    out = attention.out_proj
    weight, bias = _required(out, "weight"), effective(out, "bias")
    read = owned_parameters(out, "weight")
    learns = _learn([*read, *owned_parameters(out, "bias")])
    found.append(Projection(attention, "out_proj", separate, weight, bias, read, learns))
    return found


def called(layer: nn.Module) -> nn.Module:
    """The module of the model that is called where `layer` computes: a projection's attention.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2)
        >>> called(projections(attention, separate=False)[0]) is attention
        True
    """
    return layer.owner if isinstance(layer, Projection) else layer


def attends_another(attention: nn.Module, parents: Iterable[nn.Module]) -> bool:
    """Whether an attention stands where torch's decoders read keys and values of another sequence.

    Example:
        >>> layer = nn.TransformerDecoderLayer(8, 2, 16)
        >>> [attends_another(own, [layer]) for own in (layer.self_attn, layer.multihead_attn)]
        [False, True]
    """
    return any(
        isinstance(parent, nn.TransformerDecoderLayer) and parent.multihead_attn is attention
        for parent in parents
    )


def _learn(parameters: list[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def _required(module: nn.Module, name: str) -> Tensor:
    tensor = effective(module, name)
    if tensor is None:
        raise ValueError(f"expected {name} of the attention to be a tensor, got None; try another")
    return tensor
