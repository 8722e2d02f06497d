"""Made-up int8 engines for the peers' workers: one exact, the others each wrong or different."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.engines.interface import (
    DYNAMIC,
    SEVEN_BITS,
    Array,
    Layer,
    Prepared,
    seven_bits,
)


class Exact:
    """Computes linear layers in 64-bit integers."""

    precision = "int8"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def version(self) -> str:
        return "exact 1.0"

    def integers(self, layer: Layer) -> Array:
        scales = layer.quantized
        if layer.io == "uint8":
            return layer.x.astype(np.int64) - scales.x_zero
        return np.asarray(np.rint(layer.x / np.float32(scales.x_scale)), np.int64)

    def sums(self, layer: Layer) -> Array:
        return self.integers(layer) @ layer.weight.T.astype(np.int64) + layer.bias

    def steps(self, layer: Layer) -> Array:
        scales = layer.quantized
        return np.asarray(self.sums(layer) * (scales.bias_scales.astype(float) / scales.y_scale))

    def compute(self, layer: Layer) -> Array:
        scales = layer.quantized
        if layer.io == "float32":
            return np.asarray(self.steps(layer) * scales.y_scale, np.float32)
        rounded = np.rint(self.steps(layer)) + scales.y_zero
        return np.asarray(np.clip(rounded, 0, 255), np.uint8)

    def prepare(self, layer: Layer) -> Prepared:
        def call() -> Array:
            return self.compute(layer)

        return Prepared([call], call, self.threads, self.precision)


class Truncates(Exact):
    """Never rounds up: a step off in half of its elements."""

    def compute(self, layer: Layer) -> Array:
        return np.asarray(np.clip(np.floor(self.steps(layer)), 0, 255), np.uint8)


class Saturates(Exact):
    """Adds up pairs of products in 16 bits."""

    def sums(self, layer: Layer) -> Array:
        x, weight = self.integers(layer) + layer.quantized.x_zero, layer.weight.astype(np.int64)
        products = x[:, None, :] * weight[None]
        pairs = products.reshape(*products.shape[:2], -1, 2).sum(-1).clip(-(2**15), 2**15 - 1)
        zero = layer.quantized.x_zero * weight.sum(1)
        return np.asarray(pairs.sum(-1) - zero + layer.bias)


class SevenBits(Saturates):
    """The same, with weights that it has room for: exact for those, where y has room for them."""

    precision = SEVEN_BITS

    def sums(self, layer: Layer) -> Array:
        halved = Layer(
            layer.op, seven_bits(layer.weight), np.zeros_like(layer.bias), layer.x, layer.stride,
            layer.padding, layer.cold_bytes, layer.io, layer.quantization,
        )  # fmt: skip
        return 2 * super().sums(halved) + layer.bias

    def steps(self, layer: Layer) -> Array:
        zero = layer.quantized.y_zero
        return np.asarray(np.clip(super().steps(layer), -zero, 255 - zero))


class OneRowOff(Exact):
    """Has the last row's bias wrong by a tenth of its y."""

    def sums(self, layer: Layer) -> Array:
        sums = super().sums(layer).copy()
        sums[:, -1] += max(1, int(abs(sums).max()) // 10)
        return sums


class Dynamic(Exact):
    """Takes x a step of its own grid too high."""

    precision = DYNAMIC

    def integers(self, layer: Layer) -> Array:
        return super().integers(layer) + 1


class Undeclared(Dynamic):
    """The same, and does not say so."""

    precision = "int8"


class Wide(Exact):
    """Gives float32 whatever was asked."""

    def compute(self, layer: Layer) -> Array:
        return np.asarray(self.steps(layer), np.float32)


class Float(Exact):
    """Computes the right thing in float32."""

    precision = "float32"
