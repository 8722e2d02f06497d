"""`torch.ops.sparseinfer.*`: the operators that the modules call.

    linear(x, packed, bias, out_features, activation, threads) -> y
    conv1d / conv2d(x, packed, bias, out_channels, kernel_size, stride, padding, dilation, groups,
                    padding_mode, activation, threads) -> y
    dense_weight(packed, shape) -> weight
    recurrent(gates, packed, bias, h, c, batch_sizes, cell, reverse, batch_first, threads)
        -> (y, h, c): see `sparseinfer.ops.run_steps`, without gradients

`packed` is a buffer of `sparseinfer.pack`; `activation` is a name of `ACTIVATIONS`; `padding` lists
both ends of each axis (top, bottom, left, right); `threads = 0` means `torch.get_num_threads()` at
the time of the call. Outputs are contiguous. Input and bias have gradients, the weight has none.
On the CPU the arithmetic is float32: inputs in float16 or bfloat16 (with a bias of that type) are
converted, and so is the output; under autocast the output has autocast's type, as that of a dense
layer has. On CUDA the arithmetic is that of the packed values' type with float32 sums: inputs have
that type, or are converted where the values are float32.
The operators are defined with `torch.library.Library`, not `custom_op`, for its lower overhead: a
call on a small layer costs as much as the arithmetic.

Where a pruned weight meets a NaN or Inf activation, whether it propagates depends on the format and
is unspecified; under a kept weight it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseinfer import formats
from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels.activations import ACTIVATIONS, check_choice
from sparseinfer.kernels.contract import NARROW, PADDING_MODES, conv_output_shape
from sparseinfer.kernels.dispatch import same_device
from sparseinfer.ops import autograd, onnx
from sparseinfer.ops.run_conv import conv_cpu, conv_cuda
from sparseinfer.ops.run_linear import linear_cpu, linear_cuda
from sparseinfer.ops.run_steps import recurrent_cpu, recurrent_fake
from sparseinfer.when_imported import when_imported

__all__ = ["ACTIVATIONS", "PADDING_MODES", "autocast_cpu"]

_AUTOCAST_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_AUTOCAST_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

_SCHEMAS = (
    "linear(Tensor x, Tensor packed, Tensor? bias, int out_features, str activation, int threads)"
    " -> Tensor",
    "conv1d(Tensor x, Tensor packed, Tensor? bias, int out_channels, int[1] kernel_size, int[1] "
    "stride, int[2] padding, int[1] dilation, int groups, str padding_mode, str activation, int "
    "threads) -> Tensor",
    "conv2d(Tensor x, Tensor packed, Tensor? bias, int out_channels, int[2] kernel_size, int[2] "
    "stride, int[4] padding, int[2] dilation, int groups, str padding_mode, str activation, int "
    "threads) -> Tensor",
    "dense_weight(Tensor packed, SymInt[] shape) -> Tensor",
    "recurrent(Tensor gates, Tensor packed, Tensor? bias, Tensor h, Tensor? c, Tensor? batch_sizes,"
    " str cell, bool reverse, bool batch_first, int threads) -> (Tensor, Tensor, Tensor)",
)


def _linear_fake(
    x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, activation: str, threads: int
) -> Tensor:
    # A meta tensor brings a real one here, which would come out with memory nobody wrote.
    same_device(x, packed)
    check_choice("activation", activation, ACTIVATIONS)
    return x.new_empty((*x.shape[:-1], out_features))


def _conv_fake(
    x: Tensor, packed: Tensor, bias: Tensor | None, out_channels: int, kernel_size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    padding_mode: str, activation: str, threads: int,
) -> Tensor:  # fmt: skip
    same_device(x, packed)
    return x.new_empty(
        conv_output_shape(
            x,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            activation,
        )
    )


def _dense_weight(packed: Tensor, shape: Sequence[int]) -> Tensor:
    weight = formats.unpack(packed)
    if list(weight.shape) != list(shape):
        raise RuntimeError(
            f"expected a packed weight of shape {list(shape)}, got {list(weight.shape)}; "
            "try sparseinfer.unpack(packed)"
        )
    return weight


def _dense_weight_fake(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(list(shape), dtype=torch.float32)


def autocast_cpu(name: str) -> Callable[..., Tensor]:
    """The kernel of an operator under CPU autocast: float32 inside, autocast's type outside.

    Example:
        >>> autocast_cpu("linear").__name__
        'kernel'
    """
    operator = getattr(torch.ops.sparseinfer, name).default

    def kernel(x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CPU):
            y = operator(_widened(x), packed, None if bias is None else _widened(bias), *options)
        return y.to(torch.get_autocast_dtype("cpu"))

    return kernel


def _autocast_cuda(name: str) -> Callable[..., Tensor]:
    """The kernel of an operator under CUDA autocast: input and bias become autocast's type, as a
    dense layer's do, and the output has it. The packed values keep theirs."""
    operator = getattr(torch.ops.sparseinfer, name).default

    def kernel(x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda")
        stored = dtype
        # A fake buffer tells no type: values of autocast's, or float32, need no other.
        if type(packed) is Tensor and open_packed(packed).dtype in NARROW:
            stored = open_packed(packed).dtype
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CUDA):
            y = operator(_cast(x, stored), packed, _cast(bias, stored), *options)
        return y.to(dtype)

    return kernel


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    """Autocast leaves float64 and integers alone."""
    if tensor is None or tensor.dtype not in (*NARROW, torch.float32):
        return tensor
    return tensor.to(dtype)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in NARROW else tensor


def _define() -> torch.library.Library:
    library = torch.library.Library("sparseinfer", "DEF")
    for schema in _SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("linear", linear_cpu, "CPU")
    library.impl("linear", linear_cuda, "CUDA")
    torch.library.register_fake("sparseinfer::linear", _linear_fake, lib=library)
    for name in ("conv1d", "conv2d"):
        library.impl(name, conv_cpu, "CPU")
        library.impl(name, conv_cuda, "CUDA")
        torch.library.register_fake(f"sparseinfer::{name}", _conv_fake, lib=library)
    for name in ("linear", "conv1d", "conv2d"):
        library.impl(name, autocast_cpu(name), "AutocastCPU")
        library.impl(name, _autocast_cuda(name), "AutocastCUDA")
    library.impl("recurrent", recurrent_cpu, "CPU")
    torch.library.register_fake("sparseinfer::recurrent", recurrent_fake, lib=library)
    for device in ("CPU", "CUDA"):
        library.impl("dense_weight", _dense_weight, device)
    torch.library.register_fake("sparseinfer::dense_weight", _dense_weight_fake, lib=library)
    return library


_LIBRARY = _define()
"""Held for the life of the process: the operators go when it does."""

linear = autograd.register(
    _LIBRARY, "linear", linear_cpu, autograd.linear_gradients, onnx.dense_linear
)
conv1d = autograd.register(_LIBRARY, "conv1d", conv_cpu, autograd.conv_gradients, onnx.dense_conv)
conv2d = autograd.register(_LIBRARY, "conv2d", conv_cpu, autograd.conv_gradients, onnx.dense_conv)
"""What the modules call: the operators, by the shortest way that this call allows."""

when_imported(onnx.EXPORTER, onnx.register)
