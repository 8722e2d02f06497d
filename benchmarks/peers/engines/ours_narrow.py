"""sparseinfer in int8 and in bfloat16: the native call inside a network, the drop-in module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

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
    """Values in bfloat16, which the kernels widen and multiply in float32."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once and copy it."""
        return self._modules(layer, "bfloat16", weights="bfloat16")


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
        packed = Packed(torch.from_numpy(blob).clone())
        copies = [packed, *(packed.copy() for _ in range(layer.copies(blob.nbytes) - 1))]
        linear = layer.op == "linear"
        x, bias = torch.from_numpy(layer.x), torch.from_numpy(layer.float_bias)
        x = x.t().contiguous() if linear else x
        shape = layer.out_shape[::-1] if linear else layer.out_shape
        y = torch.empty(shape, dtype=torch.uint8)
        addresses = (x.data_ptr(), y.data_ptr(), bias.data_ptr())
        threads = torch.get_num_threads()
        rest = ("none", -1, threads, "uint8", "uint8", scales.x_scale, scales.x_zero)
        ends = (scales.y_scale, scales.y_zero)
        buffers = (x, y, bias)

        def call_of(packed: Packed) -> Callable[[], object]:
            # The addresses keep no memory alive; the default argument does.
            args: tuple[Any, ...]
            if linear:
                n = x.shape[1]
                run: Callable[..., object] = packed.handle.linear_int8
                args = (*addresses, n, n, n, True, *rest, 0, 0, *ends)
            else:
                height, width = x.shape[2:]
                stride, padding = (layer.stride,) * 2, (layer.padding,) * 4
                run = packed.handle.conv_int8
                args = (
                    *addresses, 1, height, width, stride, padding, (1, 1), "zeros", *rest, *ends
                )  # fmt: skip

            def call(_buffers: object = (packed, buffers)) -> object:
                return run(*args)

            return call

        calls = [call_of(one) for one in copies]

        def result() -> Array:
            y.fill_(255)
            calls[0]()
            return np.ascontiguousarray((y.t() if linear else y).numpy())

        return Prepared(calls, result, threads, "int8")


class Int8Dynamic(_Ours):
    """The linear module that finds the scale of every token itself."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once and copy it."""
        return self._modules(layer, DYNAMIC, weights="int8")
