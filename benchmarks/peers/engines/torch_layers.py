"""Peers that run in PyTorch's own environment: eager, torch.compile, torch.sparse, and ours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from benchmarks.peers.engines.interface import Array, Layer, Prepared, UnsupportedError


def dense_module(layer: Layer) -> nn.Module:
    """Return ``nn.Linear`` or ``nn.Conv2d`` with the layer's weight, made as users make modules.

    That is outside inference mode, whose own tensors our modules validate again at every call.
    """
    m, k = layer.weight.shape[:2]
    module: nn.Module
    with torch.inference_mode(False):
        # Without random weights: to draw them takes longer than to copy ours.
        if layer.op == "linear":
            module = skip_init(nn.Linear, k, m)
        else:
            module = skip_init(nn.Conv2d, k, m, layer.weight.shape[-1], layer.stride, layer.padding)
        _load(module, layer)
        return module.eval().requires_grad_(False)


def _load(module: nn.Module, layer: Layer) -> None:
    module.load_state_dict(
        {"weight": torch.from_numpy(layer.real_weight), "bias": torch.from_numpy(layer.float_bias)}
    )


def _call(module: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        return module(x)

    return call


class TorchEngine:
    """Sets PyTorch's threads; every call runs under ``inference_mode``."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        # Entered once for the process: entering it at each call would be timed.
        self._mode = torch.inference_mode()
        self._mode.__enter__()

    def version(self) -> str:
        """Return PyTorch's version."""
        return f"torch {torch.__version__}"

    def _prepared(
        self, modules: list[Callable[[Tensor], Tensor]], layer: Layer, precision: str = "float32"
    ) -> Prepared:
        x = torch.from_numpy(layer.x)
        calls = [_call(module, x) for module in modules]

        def result() -> Array:
            return calls[0]().contiguous().numpy()

        return Prepared(calls, result, torch.get_num_threads(), precision)


class Eager(TorchEngine):
    """Dense PyTorch as it runs by default."""

    def prepare(self, layer: Layer) -> Prepared:
        """Build a dense module for every copy."""
        copies = layer.copies(layer.weight.nbytes)
        return self._prepared([dense_module(layer) for _ in range(copies)], layer)


class Compiled(TorchEngine):
    """Dense PyTorch through ``torch.compile`` in its default mode."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._shape: tuple[object, ...] = ()
        self._modules: list[nn.Module] = []
        self._compiled: list[Callable[[Tensor], Tensor]] = []

    def prepare(self, layer: Layer) -> Prepared:
        """Compile, or give the modules compiled for the same shapes the new weight.

        The weight is an argument of the compiled code, not a constant in it.
        """
        shape = (layer.weight.shape, layer.x.shape, layer.stride, layer.cold_bytes)
        if shape != self._shape:
            torch.compiler.reset()
            copies = layer.copies(layer.weight.nbytes)
            self._modules = [dense_module(layer) for _ in range(copies)]
            self._compiled = [torch.compile(module, dynamic=False) for module in self._modules]
            self._shape = shape
        else:
            with torch.inference_mode(False):
                for module in self._modules:
                    _load(module, layer)
        return self._prepared(self._compiled, layer)


class SparseCsr(TorchEngine):
    """torch.sparse: W as CSR times a channel-major x, the faster way; bias added in place."""

    def prepare(self, layer: Layer) -> Prepared:
        """Convert the weight once and copy it.

        Raises:
            UnsupportedError: the layer is a convolution.
        """
        if layer.op != "linear":
            raise UnsupportedError("torch.sparse has no convolution")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            weight = torch.from_numpy(layer.weight).to_sparse_csr()
        size = sum(
            part.nbytes for part in (weight.values(), weight.col_indices(), weight.crow_indices())
        )
        weights = [weight, *(weight.clone() for _ in range(layer.copies(size) - 1))]
        x = torch.from_numpy(layer.x).t().contiguous()
        bias = torch.from_numpy(layer.bias)[:, None]

        def call_with(weight: Tensor) -> Callable[[], Tensor]:
            return lambda: (weight @ x).add_(bias)

        calls = [call_with(weight) for weight in weights]
        return Prepared(calls, lambda: calls[0]().t().contiguous().numpy(), torch.get_num_threads())


class Ours(TorchEngine):
    """sparseinfer's drop-in module, in the panel format."""

    def version(self) -> str:
        """Return sparseinfer's version."""
        from sparseinfer import _C

        return f"sparseinfer {_C.version()}"

    def prepare(self, layer: Layer) -> Prepared:
        """Pack the weight once and copy it."""
        from sparseinfer.formats import BY_SHAPE, kblock_for
        from sparseinfer.layers.linear_conv import SparseConv2d, SparseLinear

        kind = SparseLinear if layer.op == "linear" else SparseConv2d
        # As `convert_to_sparse` chooses for such inputs.
        kblock = kblock_for(layer.x.shape[0]) if layer.op == "linear" else BY_SHAPE
        with torch.inference_mode(False):
            module: nn.Module = kind.from_dense(dense_module(layer), format="panel", kblock=kblock)
            size = sum(buffer.nbytes for buffer in module.buffers())
            modules = [module]
            modules += [copy.deepcopy(module) for _ in range(layer.copies(size) - 1)]
        return self._prepared(list(modules), layer)
