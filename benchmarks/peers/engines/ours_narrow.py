"""sparseinfer in int8 and in bfloat16: the native call inside a network, the drop-in module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.native import Packed
from benchmarks.peers.engines.interface import DYNAMIC, Array, Layer, Prepared
from benchmarks.peers.engines.torch_layers import TorchEngine, dense_module
from sparseinfer import _C, SparseConv2d, SparseLinear
from sparseinfer.quantize import ActivationScale


class _Ours(TorchEngine):
    """The drop-in modules: float32 x and y, token-major or NCHW."""

    def version(self) -> str:
        """Return sparseinfer's version."""
        return f"sparseinfer {_C.version()}"

    def _modules(self, layer: Layer, precision: str, **options: Any) -> Prepared:
        kind = SparseLinear if layer.op == "linear" else SparseConv2d
        with torch.inference_mode(False):
            module: nn.Module = kind.from_dense(dense_module(layer), format="panel", **options)
            size = sum(buffer.nbytes for buffer in module.buffers())
            modules = [module]
            modules += [copy.deepcopy(module) for _ in range(layer.copies(size) - 1)]
        return self._prepared(list(modules), layer, precision)


class Bfloat16(_Ours):
    """Pairs of bfloat16, which multiply x in that type: natively in a network, or the module."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once and copy it."""
        if layer.io == "bfloat16":
            return self._native(layer)
        return self._modules(layer, "bfloat16", weights="bfloat16", activations="bfloat16")

    def _native(self, layer: Layer) -> Prepared:
        blob = _C.pack("panel", np.ascontiguousarray(layer.weight), value_type="bfloat16", g=2)
        x, bias = torch.from_numpy(layer.x).bfloat16(), torch.from_numpy(layer.bias)
        types = ("bfloat16", "bfloat16")
        return _native_calls(layer, blob, x, bias, torch.bfloat16, "bf16", types)


class Int8(_Ours):
    """uint8 by the native call, channel-major, as inside a network; float32 by the module."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once and copy it."""
        if layer.io == "uint8":
            return self._native(layer)
        scales = layer.quantized
        scale = ActivationScale(scales.x_scale, scales.x_zero)
        return self._modules(layer, "int8", weights="int8", input_scale=scale)

    def _native(self, layer: Layer) -> Prepared:
        scales = layer.quantized
        blob = _C.pack("panel", layer.real_weight, value_type="int8", scales=scales.weight_scales)
        x, bias = torch.from_numpy(layer.x), torch.from_numpy(layer.float_bias)
        inputs = ("uint8", "uint8", scales.x_scale, scales.x_zero)
        of_tokens = (0, 0) if layer.op == "linear" else ()
        rest = (*inputs, *of_tokens, scales.y_scale, scales.y_zero)
        return _native_calls(layer, blob, x, bias, torch.uint8, "int8", rest)


class Int8Dynamic(_Ours):
    """The linear module that finds the scale of every token itself."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once and copy it."""
        return self._modules(layer, DYNAMIC, weights="int8")


def _native_calls(
    layer: Layer, blob: Array, x: Tensor, bias: Tensor, dtype: torch.dtype, kind: str,
    rest: tuple[object, ...],
) -> Prepared:  # fmt: skip
    """Calls of the native function for a type, channel-major; `rest` is what it takes besides."""
    packed = Packed(torch.from_numpy(blob).clone())
    copies = [packed, *(packed.copy() for _ in range(layer.copies(blob.nbytes) - 1))]
    linear = layer.op == "linear"
    x = x.t().contiguous() if linear else x
    y = torch.empty(layer.out_shape[::-1] if linear else layer.out_shape, dtype=dtype)
    addresses = (x.data_ptr(), y.data_ptr(), bias.data_ptr())
    threads = torch.get_num_threads()
    if linear:
        n = x.shape[1]
        args: tuple[Any, ...] = (*addresses, n, n, n, True)
    else:
        height, width = x.shape[2:]
        stride, padding = (layer.stride,) * 2, (layer.padding,) * 4
        args = (*addresses, 1, height, width, stride, padding, (1, 1), "zeros")
    args = (*args, "none", -1, threads, *rest)
    buffers = (x, y, bias)

    def call_of(packed: Packed) -> Callable[[], object]:
        run: Callable[..., object] = getattr(packed.handle, f"{layer.op}_{kind}")

        # The addresses keep no memory alive; the default argument does.
        def call(_buffers: object = (packed, buffers)) -> object:
            return run(*args)

        return call

    calls = [call_of(one) for one in copies]

    def result() -> Array:
        y.fill_(255)
        calls[0]()
        plain = y.float() if dtype == torch.bfloat16 else y
        return np.ascontiguousarray((plain.t() if linear else plain).numpy())

    precision = "bfloat16" if kind == "bf16" else kind
    return Prepared(calls, result, threads, precision)
