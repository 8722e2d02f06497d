"""Gradients of the operators: a sparse forward, a backward through the unpacked weight.

The gradient reaches the input and the bias. The packed weight has none: train with masks on the
dense model and convert again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.activations import activation_gradient

__all__ = ["conv_gradients", "linear_gradients", "register"]

Gradients = Callable[..., tuple[Tensor | None, Tensor | None]]
"""Of (operator, needed, gradient, x, packed, bias, *options): the gradients of x and bias."""

_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_PLAIN_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU).raw_repr()


def register(
    library: torch.library.Library, name: str, cpu: Callable[..., Tensor], gradients: Gradients
) -> None:
    """Give the operator `name` of `library`, whose CPU kernel is `cpu`, its derivative.

    `torch.library.register_autograd` does the same at about 4 us more a call, because it crosses
    the dispatcher once more from Python; here a call that needs no gradient, and that no mode of
    torch (fake tensors, tracing) wants to see, goes straight to `cpu`.
    """
    operator = getattr(torch.ops.sparseinfer, name).default

    def below(keyset: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & _BELOW_AUTOGRAD, *arguments)

    class Sparse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            ctx.save_for_backward(*arguments[:3])
            ctx.options = arguments[3:]
            return below(keyset, *arguments)

        @staticmethod
        def backward(ctx: Any, *outputs: Any) -> Any:
            x, packed, bias = ctx.saved_tensors
            needed = (ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[3])
            of_x, of_bias = gradients(operator, needed, outputs[0], x, packed, bias, *ctx.options)
            return (None, of_x, None, of_bias, *(None for _ in ctx.options))

    def kernel(keyset: Any, x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Any:
        if torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return Sparse.apply(keyset, x, packed, bias, *options)
        if (keyset & _BELOW_AUTOGRAD).raw_repr() == _PLAIN_CPU:
            return cpu(x, packed, bias, *options)
        return below(keyset, x, packed, bias, *options)

    library.impl(name, kernel, "Autograd", with_keyset=True)


def linear_gradients(
    operator: Any, needed: tuple[bool, bool], gradient: Tensor, x: Tensor, packed: Tensor,
    bias: Tensor | None, out_features: int, activation: str, threads: int,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of `sparseinfer::linear` at its input and bias."""
    if activation != "none":
        preactivation = operator(x, packed, bias, out_features, "none", threads)
        gradient = activation_gradient(activation, gradient, preactivation)
    of_x = of_bias = None
    if needed[0]:
        weight = torch.ops.sparseinfer.dense_weight(packed, (out_features, x.shape[-1]))
        of_x = gradient @ weight.to(gradient.dtype)
    if needed[1]:
        of_bias = gradient.reshape(-1, out_features).sum(dim=0)
    return of_x, of_bias


def conv_gradients(
    operator: Any, needed: tuple[bool, bool], gradient: Tensor, x: Tensor, packed: Tensor,
    bias: Tensor | None, out_channels: int, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, padding_mode: str, activation: str,
    threads: int,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of `sparseinfer::conv1d` and `conv2d` at their input and bias."""
    if activation != "none":
        preactivation = operator(
            x, packed, bias, out_channels, kernel_size, stride, padding, dilation, groups,
            padding_mode, "none", threads,
        )  # fmt: skip
        gradient = activation_gradient(activation, gradient, preactivation)
    axes = len(kernel_size)
    of_x = of_bias = None
    if needed[0]:
        shape = (out_channels, x.shape[1] // groups, *kernel_size)
        weight = torch.ops.sparseinfer.dense_weight(packed, shape)
        sizes = [
            x.shape[axis + 2] + padding[2 * axis] + padding[2 * axis + 1] for axis in range(axes)
        ]
        padded = x.new_empty((1,)).expand((*x.shape[:2], *sizes))
        of_x, _, _ = torch.ops.aten.convolution_backward(
            gradient, padded, weight, None, stride, [0] * axes, dilation, False, [0] * axes, groups,
            [True, False, False],
        )  # fmt: skip
        for axis in range(axes):
            before, after = padding[2 * axis], padding[2 * axis + 1]
            of_x = _unpad(of_x, axis + 2, x.shape[axis + 2], before, after, padding_mode)
    if needed[1]:
        of_bias = gradient.sum(dim=[0, *range(2, axes + 2)])
    return of_x, of_bias


def _unpad(gradient: Tensor, dim: int, size: int, before: int, after: int, mode: str) -> Tensor:
    """Fold the gradient at a padded axis back on the `size` elements that padding copied."""
    if before == after == 0:
        return gradient
    if mode == "zeros":
        return gradient.narrow(dim, before, size)
    positions = torch.arange(size, dtype=torch.float32, device=gradient.device)[None, None]
    origin = F.pad(positions, (before, after), mode=mode)[0, 0].long()
    folded = gradient.new_zeros((*gradient.shape[:dim], size, *gradient.shape[dim + 1 :]))
    return folded.index_add(dim, origin, gradient)
