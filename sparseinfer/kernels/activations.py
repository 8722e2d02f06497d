"""The activations that a kernel can apply before it stores its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "ENGINE_ACTIVATIONS",
    "activation_gradient",
    "activation_module",
    "check_choice",
]

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
_OF_ENGINES: dict[str, Callable[[], nn.Module]] = {
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
}

ACTIVATIONS: tuple[str, ...] = tuple(_MODULES)
"""Names of the activations; `gelu` is the erf form."""

ENGINE_ACTIVATIONS: tuple[str, ...] = (*ACTIVATIONS, *_OF_ENGINES)
"""And those that the nodes of engines have besides, by their numbers in a file."""

_aten = torch.ops.aten

# Of the gradient g of the output and the pre-activation z. All have derivatives themselves, which
# aten.silu_backward has not.
_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda g, z: g,
    "relu": lambda g, z: g * (z > 0),
    "relu6": lambda g, z: g * ((z > 0) & (z < 6)),
    "gelu": lambda g, z: _aten.gelu_backward(g, z),
    "gelu_tanh": lambda g, z: _aten.gelu_backward(g, z, approximate="tanh"),
    "silu": lambda g, z: g * torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z))),
    "sigmoid": lambda g, z: _aten.sigmoid_backward(g, torch.sigmoid(z)),
    "tanh": lambda g, z: _aten.tanh_backward(g, torch.tanh(z)),
}


def check_choice(what: str, got: str, known: Sequence[str]) -> None:
    """Raise ValueError, with the known names, unless `got` is one of them.

    Example:
        >>> check_choice("activation", "relu", ACTIVATIONS)
    """
    if got not in known:
        raise ValueError(
            f"expected {what} to be one of {', '.join(known)}, got {got!r}; try {known[0]!r}"
        )


def activation_module(name: str) -> nn.Module:
    """The torch module of an activation.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> activation_module("relu6")
        ReLU6()
    """
    check_choice("activation", name, ENGINE_ACTIVATIONS)
    return (_MODULES | _OF_ENGINES)[name]()


def activation_gradient(name: str, gradient: Tensor, preactivation: Tensor) -> Tensor:
    """The gradient at an activation's input, given the one at its output.

    Example:
        >>> activation_gradient("relu", torch.ones(2), torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
    """
    return _GRADIENTS[name](gradient, preactivation)
