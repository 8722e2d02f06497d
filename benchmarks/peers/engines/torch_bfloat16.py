"""Peers of PyTorch in bfloat16: as modules run, and with weights packed for oneDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.engines.interface import Array, Layer, Prepared
from benchmarks.peers.engines.torch_int8 import image
from benchmarks.peers.engines.torch_layers import TorchEngine, dense_module


class _Bfloat16Engine(TorchEngine):
    """x is bfloat16, or float32 that is rounded, and y widened, at every call."""

    def _calls(self, layer: Layer, make: Callable[[], Callable[[Tensor], Tensor]]) -> Prepared:
        x = image(layer)
        narrow = layer.io == "bfloat16"
        if narrow:
            x = x.bfloat16()

        def call_of(run: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
            if narrow:
                return lambda: run(x)
            return lambda: run(x.bfloat16()).float()

        calls = [call_of(make()) for _ in range(layer.copies(layer.weight.nbytes // 2))]

        def result() -> Array:
            return calls[0]().float().contiguous().numpy()

        return Prepared(calls, result, torch.get_num_threads(), "bfloat16")


class Eager(_Bfloat16Engine):
    """Dense modules of PyTorch, channels-last."""

    def prepare(self, layer: Layer) -> Prepared:
        """Build a dense module for every copy."""

        def make() -> Callable[[Tensor], Tensor]:
            module = dense_module(layer).bfloat16()
            if isinstance(module, nn.Conv2d):
                channels_last = module.weight.contiguous(memory_format=torch.channels_last)
                module.weight = nn.Parameter(channels_last, requires_grad=False)
            return module

        return self._calls(layer, make)


class OneDnn(_Bfloat16Engine):
    """The operators that torch.compile puts into a frozen graph: weights in oneDNN's own order."""

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once a copy."""
        ops = torch.ops.mkldnn
        weight, bias = (torch.from_numpy(part).bfloat16() for part in (layer.weight, layer.bias))
        rest: tuple[Any, ...] = ("none", [], "")

        def make() -> Callable[[Tensor], Tensor]:
            if layer.op == "linear":
                packed = ops._reorder_linear_weight(weight, layer.x.shape[0])
                return lambda x: ops._linear_pointwise(x, packed, bias, *rest)
            places = ([layer.padding] * 2, [layer.stride] * 2, [1, 1], 1)
            packed = ops._reorder_convolution_weight(weight, *places, list(layer.x.shape))
            return lambda x: ops._convolution_pointwise(x, packed, bias, *places, *rest)

        return self._calls(layer, make)
