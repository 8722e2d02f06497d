"""Derivatives of the operators: a sparse forward, a backward through the unpacked weight.

The gradient reaches the input and the bias. The packed weight has none: train with masks on the
dense model and convert again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as F
from torch.onnx import is_in_onnx_export

from sparseinfer.kernels.activations import activation_gradient
from sparseinfer.ops.shortcut import unobserved

__all__ = ["conv_gradients", "linear_gradients", "register"]

Gradients = Callable[..., tuple[Tensor | None, Tensor | None]]
"""Of (needed, gradient, shape, packed, *geometry): the gradients of x, whose shape `shape` is, and
of the bias. `gradient` is that of the output before its activation; `geometry` is the operator's
arguments from the output features or channels on, without activation and threads."""

_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_PLAIN_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU).raw_repr()


def register(
    library: torch.library.Library, name: str, cpu: Callable[..., Tensor], gradients: Gradients,
    exported: Callable[..., Tensor],
) -> Callable[..., Tensor]:  # fmt: skip
    """Give the operator `name` of `library`, whose CPU kernel is `cpu`, its derivative.

    Returns a function with the operator's arguments for the modules to call: it skips the
    dispatcher where nothing in torch has to see the call, and is `exported` to ONNX.

    `torch.library.register_autograd` does the same at about 4 us more a call, because it crosses
    the dispatcher once more from Python; here a call that needs no gradient, and that no mode of
    torch (fake tensors, tracing) wants to see, goes straight to `cpu`.
    """
    operator = getattr(torch.ops.sparseinfer, name).default

    def below(keyset: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & _BELOW_AUTOGRAD, *arguments)

    class Sparse(torch.autograd.Function):
        # What has no gradient comes in one tuple: each argument of `apply` costs time.
        @staticmethod
        def forward(ctx: Any, x: Tensor, bias: Tensor | None, rest: tuple[Any, ...]) -> Any:
            """`rest`: dispatch keys (None: the CPU kernel is all that is left), packed, options."""
            ctx.call = x.shape, rest
            if rest[-2] != "none":
                ctx.save_for_backward(x, bias)
            if rest[0] is None:
                return cpu(x, rest[1], bias, *rest[2:])
            if _forward_derivatives():
                ctx.save_for_forward(x, bias)
            # Torch turns derivatives off in here; transforms further out still want theirs.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return below(rest[0], x, rest[1], bias, *rest[2:])

        @staticmethod
        def backward(ctx: Any, *outputs: Any) -> Any:
            shape, (_, packed, *geometry, _, _) = ctx.call
            gradient = through_activation(ctx, outputs[0])
            return *gradients(ctx.needs_input_grad[:2], gradient, shape, packed, *geometry), None

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            shape, (_, packed, *geometry, _, threads) = ctx.call
            of_x, of_bias, _ = tangents
            if of_x is None:
                of_x = of_bias.new_zeros(shape)
            tangent = operator(of_x, packed, of_bias, *geometry, "none", threads)
            # An activation works element by element: its derivative is its own transpose.
            return through_activation(ctx, tangent)

    def through_activation(ctx: Any, derivative: Tensor) -> Tensor:
        _, (_, packed, *geometry, activation, threads) = ctx.call
        if activation == "none":
            return derivative
        x, bias = ctx.saved_tensors
        preactivation = operator(x, packed, bias, *geometry, "none", threads)
        return activation_gradient(activation, derivative, preactivation)

    # `Function.apply` in Python refuses under `torch.func`, whose transforms it would have to apply
    # itself. By the time `kernel` runs, the dispatcher has come down to one transform.
    apply = super(torch.autograd.Function, Sparse).apply

    def kernel(keyset: Any, x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Any:
        if _forward_derivatives() or (
            is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        ):
            with enable_single_level_autograd_function():
                return apply(x, bias, (keyset, packed, *options))
        if (keyset & _BELOW_AUTOGRAD).raw_repr() == _PLAIN_CPU:
            return cpu(x, packed, bias, *options)
        return below(keyset, x, packed, bias, *options)

    def call(x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        if is_dynamo_compiling() or not unobserved(x, packed, bias):
            if not is_dynamo_compiling() and is_in_onnx_export():
                return exported(x, packed, bias, *options)
            return operator(x, packed, bias, *options)
        if is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return apply(x, bias, (None, packed, *options))
        return cpu(x, packed, bias, *options)

    library.impl(name, kernel, "Autograd", with_keyset=True)
    return call


def _forward_derivatives() -> bool:
    """Whether tensors may carry tangents: inside `torch.func.jvp` or a `forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def linear_gradients(
    needed: tuple[bool, bool], gradient: Tensor, shape: torch.Size, packed: Tensor,
    out_features: int,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of `sparseinfer::linear` at its input and bias."""
    of_x = of_bias = None
    if needed[0]:
        weight = torch.ops.sparseinfer.dense_weight(packed, (out_features, shape[-1]))
        of_x = gradient @ weight.to(gradient.dtype)
    if needed[1]:
        of_bias = gradient.reshape(-1, out_features).sum(dim=0)
    return of_x, of_bias


def conv_gradients(
    needed: tuple[bool, bool], gradient: Tensor, shape: torch.Size, packed: Tensor,
    out_channels: int, kernel_size: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int, padding_mode: str,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of `sparseinfer::conv1d` and `conv2d` at their input and bias."""
    axes = len(kernel_size)
    of_x = of_bias = None
    if needed[0]:
        weight = torch.ops.sparseinfer.dense_weight(
            packed, (out_channels, shape[1] // groups, *kernel_size)
        )
        sizes = [
            shape[axis + 2] + padding[2 * axis] + padding[2 * axis + 1] for axis in range(axes)
        ]
        padded = gradient.new_empty((1,)).expand((*shape[:2], *sizes))
        of_x, _, _ = torch.ops.aten.convolution_backward(
            gradient, padded, weight.to(gradient.dtype), None, stride, [0] * axes, dilation, False,
            [0] * axes, groups, [True, False, False],
        )  # fmt: skip
        for axis in range(axes):
            before, after = padding[2 * axis], padding[2 * axis + 1]
            of_x = _unpad(of_x, axis + 2, shape[axis + 2], before, after, padding_mode)
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
