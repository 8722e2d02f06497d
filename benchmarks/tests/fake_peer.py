"""Made-up engines that a worker process of the peers serves: one honest, the others each wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np

from benchmarks.peers.engines.interface import Array, Layer, Prepared, UnsupportedError


class Honest:
    """Computes linear layers with NumPy, and talks too much."""

    precision = "float32"

    def __init__(self, threads: int) -> None:
        print("a library's banner", flush=True)
        self.threads = threads

    def version(self) -> str:
        return "honest 1.0"

    def compute(self, layer: Layer) -> Array:
        print("progress", flush=True)
        return layer.x @ layer.weight.T + layer.bias

    def call(self, layer: Layer) -> Callable[[], object]:
        return lambda: self.compute(layer)

    def prepare(self, layer: Layer) -> Prepared:
        if layer.op != "linear":
            raise UnsupportedError("has no convolution")
        calls = [self.call(layer) for _ in range(layer.copies(layer.weight.nbytes))]
        return Prepared(calls, lambda: self.compute(layer), self.threads, self.precision)


class Wrong(Honest):
    """Off by a little more than rounding explains, in one element."""

    def compute(self, layer: Layer) -> Array:
        y = super().compute(layer)
        y[-1, -1] += 1e-3
        return y


class Half(Honest):
    """Says that it computes in float16, and does."""

    precision = "float16"

    def compute(self, layer: Layer) -> Array:
        x, weight, bias = (part.astype(np.float16) for part in (layer.x, layer.weight, layer.bias))
        y = (x.astype(np.float32) @ weight.T.astype(np.float32)).astype(np.float16) + bias
        return y.astype(np.float32)


class Greedy(Honest):
    """Takes a thread more than asked."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads + 1)


class Fails(Honest):
    """Raises where it should compute."""

    def compute(self, layer: Layer) -> Array:
        raise MemoryError("no room")


class CrashesWhenTimed(Honest):
    """Gives the right result, and dies in a later call."""

    calls = 0

    def call(self, layer: Layer) -> Callable[[], object]:
        def call() -> None:
            self.calls += 1
            if self.calls > 4:
                os.kill(os.getpid(), signal.SIGSEGV)

        return call


class CrashesAtStart(Honest):
    """Cannot even be made."""

    def __init__(self, threads: int) -> None:
        raise OSError("needs another processor")


class Hangs(Honest):
    """Never answers."""

    def compute(self, layer: Layer) -> Array:
        time.sleep(3600)
        raise AssertionError
