"""Converted models in `torch.onnx.export`: dense weights, and operators that ONNX has.

ONNX has no sparse kernels. Both exporters meet the operators as torch's own, computed from an
unpacked weight: `dense_linear` and `dense_conv`. The TorchScript one keeps the unpacked weight as a
constant of its trace. The one of `torch.export` traces without values, so `dense_weight` stays an
operator until the file is written; `register` tells that exporter what to write for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import formats
from sparseinfer.kernels.activations import activation_module

__all__ = ["EXPORTER", "dense_conv", "dense_linear", "register", "unpacked", "without_scale"]

EXPORTER = "torch.onnx._internal.exporter._core"
"""The exporter of `torch.export`; `register` takes it."""


def unpacked(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The dense weight of a packed buffer: a constant of a TorchScript trace, else an operator.

    Example:
        >>> unpacked(formats.pack(torch.eye(4)), (4, 4)).sum()
        tensor(4.)
    """
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # a constant is what is meant
            return formats.unpack(packed)
    weight: Tensor = torch.ops.sparseinfer.dense_weight(packed, shape)
    return weight


def dense_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, activation: str, threads: int
) -> Tensor:
    """`sparseinfer::linear` by torch's own operators.

    Example:
        >>> dense_linear(torch.ones(1, 4), formats.pack(torch.eye(4)), None, 4, "none", 0)
        tensor([[1., 1., 1., 1.]])
    """
    weight = unpacked(packed, (out_features, x.shape[-1]))
    return activation_module(activation)(F.linear(x, weight.to(x.dtype), bias))


def dense_conv(
    x: Tensor, packed: Tensor, bias: Tensor | None, out_channels: int, kernel_size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    padding_mode: str, activation: str, threads: int,
) -> Tensor:  # fmt: skip
    """`sparseinfer::conv1d` and `conv2d` by torch's own operators.

    Example:
        >>> packed = formats.pack(torch.ones(1, 1, 1))
        >>> x = torch.ones(1, 1, 2)
        >>> dense_conv(x, packed, None, 1, (1,), (1,), (1, 1), (1,), 1, "zeros", "none", 0)
        tensor([[[0., 1., 1., 0.]]])
    """
    weight = unpacked(packed, (out_channels, x.shape[1] // groups, *kernel_size)).to(x.dtype)
    before = list(padding[::2])
    if padding_mode != "zeros" or before != list(padding[1::2]):
        mode = "constant" if padding_mode == "zeros" else padding_mode
        x = F.pad(x, (*padding[2:], *padding[:2]), mode)
        before = [0] * len(kernel_size)
    conv: Any = F.conv1d if len(kernel_size) == 1 else F.conv2d
    y = conv(x, weight, bias, list(stride), before, list(dilation), groups)
    return activation_module(activation)(y)


def without_scale(dense: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An int8 operator by torch's own: the weight that its integers stand for, x unrounded.

    Example:
        >>> packed, scale = formats.pack(torch.eye(4), weights="int8"), torch.tensor(1.0)
        >>> call = without_scale(dense_linear)
        >>> call(torch.ones(1, 4), packed, None, scale, torch.tensor(0), 4, "none", 0)
        tensor([[1., 1., 1., 1.]])
    """

    def call(
        x: Tensor, packed: Tensor, bias: Tensor | None, scale: Tensor | None,
        zero_point: Tensor | None, *options: Any,
    ) -> Tensor:  # fmt: skip
        return dense(x, packed, bias, *options)

    return call


def register(exporter: ModuleType) -> None:
    """Teach the operators to the exporter of `torch.export`, the module `EXPORTER`.

    They are decomposed to torch's own, which serves programs that `torch.export` made before, too.

    Example:
        >>> register(importlib.import_module(EXPORTER))  # doctest: +SKIP
    """
    ops = torch.ops.sparseinfer
    for operator, dense in (
        (ops.linear, dense_linear), (ops.conv1d, dense_conv), (ops.conv2d, dense_conv),
        (ops.linear_int8, without_scale(dense_linear)),
        (ops.linear_dense_int8, without_scale(dense_linear)),
        (ops.conv1d_int8, without_scale(dense_conv)), (ops.conv2d_int8, without_scale(dense_conv)),
    ):  # fmt: skip
        torch._decomp.decomposition_table.setdefault(operator.default, dense)
    registry = exporter._registration._torchlib_registry
    registry.onnx_impl(ops.dense_weight.default, no_compile=True)(_initializer)


def _initializer(packed: Any, shape: Sequence[int]) -> Any:
    """The dense weight as a constant that is unpacked when the file is written.

    Values of initialisers are put in after the graph is made.
    """
    import onnx_ir
    from onnxscript import opset18

    def tensor() -> Any:
        if packed.const_value is None:
            raise ValueError(
                f"expected the packed weight {packed.name} to be an initialiser of the graph, got "
                "an input; try to_dense(model) before the export"
            )
        buffer = torch.from_numpy(packed.const_value.numpy().copy())
        return onnx_ir.tensor(formats.unpack(buffer).numpy())

    lazy = onnx_ir.LazyTensor(
        tensor, onnx_ir.DataType.FLOAT, onnx_ir.Shape(shape), name=None, cache=False
    )
    return opset18.Constant(value=lazy)  # type: ignore[arg-type]
