"""Peers of PyTorch in int8: two dense ways to call it, dynamic quantisation, and its sparse one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.engines.interface import (
    DYNAMIC,
    SEVEN_BITS,
    Array,
    Layer,
    Prepared,
    UnsupportedError,
    seven_bits,
)
from benchmarks.peers.engines.torch_layers import TorchEngine


class _Int8Engine(TorchEngine):
    """Holds x as the operators take it, and gives y back as the layer has it."""

    engine = "x86"
    """PyTorch's default on these processors: of FBGEMM and oneDNN the one it takes for faster."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        if self.engine not in torch.backends.quantized.supported_engines:
            raise UnsupportedError(f"this build of PyTorch has no {self.engine}")
        torch.backends.quantized.engine = self.engine
        self._halves = overflows()

    def _weight(self, layer: Layer) -> tuple[Array, int]:
        """Return the weight that the operator has room for, and how many times our scales it has.

        Where pairs of products are added up in 16 bits, as without VNNI, it is of 7 bits: what
        torch.ao's default configuration quantises to for that reason.
        """
        return (seven_bits(layer.weight), 2) if self._halves else (layer.weight, 1)

    def _calls(
        self, layer: Layer, make: Callable[[], Callable[[], Tensor]], precision: str = ""
    ) -> Prepared:
        calls = [make() for _ in range(layer.copies(layer.weight.nbytes))]

        def result() -> Array:
            y = calls[0]()
            return (y.int_repr() if y.is_quantized else y).contiguous().numpy()

        precision = precision or (SEVEN_BITS if self._halves else "int8")
        return Prepared(calls, result, torch.get_num_threads(), precision)


def overflows() -> bool:
    """Return whether PyTorch's engine loses part of a sum of the largest products."""
    size = 64
    weight = torch.full((size, size), 127, dtype=torch.int8)
    x = torch.full((1, size), 255, dtype=torch.uint8)
    packed = torch.ops.quantized.linear_prepack(
        torch._make_per_tensor_quantized_tensor(weight, 1.0, 0),  # type: ignore[attr-defined]
        torch.zeros(size),
    )
    x = torch._make_per_tensor_quantized_tensor(x, 1.0, 0)  # type: ignore[attr-defined]
    y = torch.ops.quantized.linear(x, packed, 127.0 * size, 0)
    return bool((y.int_repr() != 255).any())


def image(layer: Layer) -> Tensor:
    """Return x; an image not of float32 channels-last, which PyTorch's own operators prefer."""
    x = torch.from_numpy(layer.x)
    if layer.op == "conv" and layer.io != "float32":
        return x.contiguous(memory_format=torch.channels_last)
    return x


def quantized_weight(layer: Layer, weight: Array, step: int = 1) -> Tensor:
    """Return PyTorch's quantised tensor of an int8 weight whose scales are ``step`` times ours."""
    scales = step * torch.from_numpy(layer.quantized.weight_scales).double()
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    quantized: Tensor = torch._make_per_channel_quantized_tensor(  # type: ignore[attr-defined]
        torch.from_numpy(weight.copy()), scales, zeros, 0
    )
    return quantized


def quantized_x(layer: Layer) -> Tensor:
    """Return PyTorch's quantised tensor of a uint8 x."""
    scales = layer.quantized
    quantized: Tensor = torch._make_per_tensor_quantized_tensor(  # type: ignore[attr-defined]
        image(layer), scales.x_scale, scales.x_zero
    )
    if layer.op == "conv":
        return quantized.contiguous(memory_format=torch.channels_last)
    return quantized


def _call_quantized(layer: Layer, run: Callable[..., Tensor], packed: Any) -> Callable[[], Tensor]:
    """Return the call of an operator that takes and gives quantised tensors."""
    scales = layer.quantized
    y_scale, y_zero = scales.y_scale, scales.y_zero
    if layer.io == "uint8":
        x = quantized_x(layer)
        return lambda: run(x, packed, y_scale, y_zero)
    real = image(layer)
    x_scale, x_zero, kind = scales.x_scale, scales.x_zero, torch.quint8

    def call() -> Tensor:
        x = torch.quantize_per_tensor(real, x_scale, x_zero, kind)
        return run(x, packed, y_scale, y_zero).dequantize()

    return call


class Quantized(_Int8Engine):
    """The operators of torch.ao's quantised modules."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once a copy."""
        bias = torch.from_numpy(layer.float_bias)
        integers, step = self._weight(layer)

        def make() -> Callable[[], Tensor]:
            weight = quantized_weight(layer, integers, step)
            ops = torch.ops.quantized
            if layer.op == "linear":
                return _call_quantized(layer, ops.linear, ops.linear_prepack(weight, bias))
            stride, padding = [layer.stride] * 2, [layer.padding] * 2
            packed = ops.conv2d_prepack(weight, bias, stride, padding, [1, 1], 1)
            return _call_quantized(layer, ops.conv2d, packed)

        return self._calls(layer, make)


class OneDnn(_Int8Engine):
    """The operators that torch.compile puts into a quantised graph: oneDNN's own."""

    engine = "onednn"

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once a copy."""
        scales, ops = layer.quantized, torch.ops.onednn
        x_scale, x_zero = scales.x_scale, scales.x_zero
        narrow = layer.io == "uint8"
        kind = torch.uint8 if narrow else torch.float32
        y_scale, y_zero = (scales.y_scale, scales.y_zero) if narrow else (1.0, 0)
        bias = torch.from_numpy(layer.float_bias)
        integers, step = self._weight(layer)
        weight_scales = step * torch.from_numpy(scales.weight_scales)
        zeros = torch.zeros(len(weight_scales), dtype=torch.int64)
        weight, real = torch.from_numpy(integers), image(layer)
        rest: tuple[Any, ...] = (y_scale, y_zero, kind, "none", [], "")
        quint8 = torch.quint8

        def rounded() -> Tensor:
            return torch.quantize_per_tensor(real, x_scale, x_zero, quint8).int_repr()

        def make() -> Callable[[], Tensor]:
            places: tuple[Any, ...] = ()
            if layer.op == "linear":
                run = ops.qlinear_pointwise
                packed = ops.qlinear_prepack(weight.t(), list(layer.x.shape))
            else:
                run = ops.qconv_pointwise
                places = ([layer.stride] * 2, [layer.padding] * 2, [1, 1], 1)
                packed = ops.qconv_prepack(
                    weight, weight_scales, x_scale, x_zero, *places, list(layer.x.shape)
                )
            rest_of = (x_scale, x_zero, packed, weight_scales, zeros, bias, *places, *rest)
            if narrow:
                return lambda: run(real, *rest_of)
            return lambda: run(rounded(), *rest_of)

        return self._calls(layer, make)


class Dynamic(_Int8Engine):
    """Dynamic quantisation of a linear layer: the scale of x is found at every call."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once a copy.

        Raises:
            UnsupportedError: x is not float32.
        """
        if layer.io != "float32":
            raise UnsupportedError("quantises float32 inputs only")
        bias, x = torch.from_numpy(layer.float_bias), image(layer)
        run = torch.ops.quantized.linear_dynamic

        def make() -> Callable[[], Tensor]:
            weight = quantized_weight(layer, layer.weight)
            packed = torch.ops.quantized.linear_prepack(weight, bias)
            return lambda: run(x, packed, False)

        return self._calls(layer, make, DYNAMIC)


class SparseQuantized(_Int8Engine):
    """PyTorch's sparse int8 linear operator: FBGEMM's, for blocks of 1x4.

    It adds up pairs of products in 16 bits, which weights above 64 overflow: it is given 7 bits.
    """

    engine = "fbgemm"

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once a copy."""
        ops, bias = torch.ops.sparse, torch.from_numpy(layer.float_bias)
        halved = seven_bits(layer.weight)

        def make() -> Callable[[], Tensor]:
            weight = quantized_weight(layer, halved, step=2)
            return _call_quantized(layer, ops.qlinear, ops.qlinear_prepack(weight, bias, 1, 4))

        return self._calls(layer, make, SEVEN_BITS)
