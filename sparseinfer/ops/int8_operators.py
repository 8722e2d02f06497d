"""`torch.ops.sparseinfer.linear_int8`, `conv1d_int8` and `conv2d_int8`: calibrated int8 layers.

Their arguments are those of `linear`, `conv1d` and `conv2d` with the scale and the zero point of
the input, tensors of one element, after the bias. The gradient of x is that of the float layer with
the dequantised weight: rounding passes it unchanged. A linear layer without a calibrated scale
calls `linear`, which rounds each token by its own range. `linear_dense_int8` is the layer by
torch's dense kernel, with a calibrated scale or without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.onnx import is_in_onnx_export

from sparseinfer.kernels.activations import ACTIVATIONS, activation_gradient, check_choice
from sparseinfer.kernels.contract import conv_output_shape
from sparseinfer.kernels.dispatch import same_device
from sparseinfer.ops import autograd, onnx
from sparseinfer.ops.operators import autocast_cpu
from sparseinfer.ops.run_dense_int8 import linear_dense_int8_cpu
from sparseinfer.ops.run_int8 import conv_int8_cpu, linear_int8_cpu
from sparseinfer.ops.shortcut import unobserved

__all__ = ["conv1d_int8", "conv2d_int8", "linear_dense_int8", "linear_int8"]

_HEAD = "(Tensor x, Tensor packed, Tensor? bias, Tensor input_scale, Tensor input_zero_point, "
_CONV = (
    "int out_channels, int[{n}] kernel_size, int[{n}] stride, int[{ends}] padding, int[{n}] "
    "dilation, int groups, str padding_mode, str activation, int threads) -> Tensor"
)
_SCHEMAS = (
    f"linear_int8{_HEAD}int out_features, str activation, int threads) -> Tensor",
    "linear_dense_int8(Tensor x, Tensor packed, Tensor? bias, Tensor? input_scale, Tensor? "
    "input_zero_point, int out_features, str activation, int threads) -> Tensor",
    f"conv1d_int8{_HEAD}{_CONV.format(n=1, ends=2)}",
    f"conv2d_int8{_HEAD}{_CONV.format(n=2, ends=4)}",
)


def _linear_fake(
    x: Tensor, packed: Tensor, bias: Tensor | None, scale: Tensor | None,
    zero_point: Tensor | None, out_features: int, activation: str, threads: int,
) -> Tensor:  # fmt: skip
    same_device(x, packed)
    check_choice("activation", activation, ACTIVATIONS)
    return x.new_empty((*x.shape[:-1], out_features))


def _conv_fake(
    x: Tensor, packed: Tensor, bias: Tensor | None, scale: Tensor, zero_point: Tensor,
    out_channels: int, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, padding_mode: str, activation: str, threads: int,
) -> Tensor:  # fmt: skip
    same_device(x, packed)
    return x.new_empty(
        conv_output_shape(
            x, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode,
            activation,
        )
    )  # fmt: skip


def _register(
    library: torch.library.Library, name: str, cpu: Callable[..., Tensor],
    fake: Callable[..., Tensor], gradients: autograd.Gradients, exported: Callable[..., Tensor],
) -> Callable[..., Tensor]:  # fmt: skip
    """Give an operator its kernel, shapes and derivative; returns what the modules call."""
    library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"sparseinfer::{name}", fake, lib=library)
    operator = getattr(torch.ops.sparseinfer, name).default

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, packed, bias = inputs[:3]
        ctx.shape, ctx.rest = x.shape, inputs[3:]
        ctx.save_for_backward(packed, *([] if inputs[-2] == "none" else [x, bias]))

    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        packed, *others = ctx.saved_tensors
        scale, zero_point, *geometry, activation, threads = ctx.rest
        if activation != "none":
            x, bias = others
            plain = operator(x, packed, bias, scale, zero_point, *geometry, "none", threads)
            gradient = activation_gradient(activation, gradient, plain)
        needed = (ctx.needs_input_grad[0], ctx.needs_input_grad[2])
        of_x, of_bias = gradients(needed, gradient, ctx.shape, packed, *geometry)
        return of_x, None, of_bias, *[None] * len(ctx.rest)

    torch.library.register_autograd(
        f"sparseinfer::{name}", backward, setup_context=setup, lib=library
    )
    library.impl(name, autocast_cpu(name), "AutocastCPU")

    def call(x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        if is_dynamo_compiling() or not unobserved(x, packed, bias):
            if not is_dynamo_compiling() and is_in_onnx_export():
                return exported(x, packed, bias, *options)
            result: Tensor = operator(x, packed, bias, *options)
            return result
        if torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            result = operator(x, packed, bias, *options)
            return result
        return cpu(x, packed, bias, *options)

    return call


def _define() -> torch.library.Library:
    library = torch.library.Library("sparseinfer", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return library


_LIBRARY = _define()
"""Held for the life of the process: the operators go when it does."""

linear_int8 = _register(
    _LIBRARY, "linear_int8", linear_int8_cpu, _linear_fake, autograd.linear_gradients,
    onnx.without_scale(onnx.dense_linear),
)  # fmt: skip
linear_dense_int8 = _register(
    _LIBRARY, "linear_dense_int8", linear_dense_int8_cpu, _linear_fake, autograd.linear_gradients,
    onnx.without_scale(onnx.dense_linear),
)  # fmt: skip
conv1d_int8, conv2d_int8 = (
    _register(
        _LIBRARY, name, conv_int8_cpu, _conv_fake, autograd.conv_gradients,
        onnx.without_scale(onnx.dense_conv),
    )
    for name in ("conv1d_int8", "conv2d_int8")
)  # fmt: skip
"""What the modules call: the operators, by the shortest way that this call allows."""
