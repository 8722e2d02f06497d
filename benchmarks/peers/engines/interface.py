"""What a worker process hands to an engine, and what it gets back. Needs NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]


class UnsupportedError(Exception):
    """The engine cannot run this layer, or not as asked, on this machine; the message says why."""


@dataclass(frozen=True)
class Layer:
    """One layer in float32. Linear: weight [M, K], x [N, K]; convolution: NCHW, batch 1."""

    op: str
    """``linear`` or ``conv``."""
    weight: Array
    bias: Array
    x: Array
    stride: int
    padding: int
    cold_bytes: int
    """Bytes that rotated copies of the weight exceed; 0: one copy, warm."""

    @staticmethod
    def load(folder: Path, facts: dict[str, Any]) -> Layer:
        """Read ``weight.npy``, ``bias.npy`` and ``x.npy``; the rest comes from the request.

        The weight is mapped, and copied where it is written to: every peer reads the same pages.

        Raises:
            OSError: a file is missing.
            ValueError: a file holds pickled objects.
        """
        weight = np.load(folder / "weight.npy", mmap_mode="c", allow_pickle=False)
        bias, x = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("bias", "x"))
        return Layer(
            facts["op"], weight, bias, x, facts["stride"], facts["padding"], facts["cold_bytes"]
        )

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result: [N, M], or [1, M, H, W]."""
        m = self.weight.shape[0]
        if self.op == "linear":
            return (self.x.shape[0], m)
        kernel = self.weight.shape[-1]
        height, width = (
            (size + 2 * self.padding - kernel) // self.stride + 1 for size in self.x.shape[2:]
        )
        return (1, m, height, width)

    def copies(self, weight_bytes: int) -> int:
        """Return how many copies of a weight of ``weight_bytes`` the calls rotate through.

        One copy more than exceed ``cold_bytes``: a copy has left the cache when its turn is back.
        """
        return self.cold_bytes // weight_bytes + 2 if self.cold_bytes else 1


@dataclass(frozen=True)
class Prepared:
    """A layer that an engine is ready to run. It is kept, with the layer, while its calls are."""

    calls: Sequence[Callable[[], object]]
    """The same work on copies of the weight; they take turns."""
    result: Callable[[], Array]
    """Runs the first copy and returns y in `Layer.out_shape`."""
    threads: int
    """Threads that the engine says it uses."""
    precision: str = "float32"
    """Type that the engine computes in."""


class Engine(Protocol):
    """A peer. Made once in a worker process, for one number of threads."""

    def __init__(self, threads: int) -> None: ...

    def version(self) -> str:
        """Return the engine's name and version."""
        ...

    def prepare(self, layer: Layer) -> Prepared:
        """Build the layer.

        Raises:
            UnsupportedError: the engine cannot.
        """
        ...
