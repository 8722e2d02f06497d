"""What a worker process hands to an engine, and what it gets back. Needs NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SEVEN_BITS = "int8, weights of 7 bits"
DYNAMIC = "int8, inputs scaled at every call"
"""What an engine answers as its precision where it is not simply int8: it computes with
`seven_bits` of the weight, or finds a scale of x by itself."""


def seven_bits(weight: Array) -> Array:
    """Return half of an int8 weight, rounded away from zero: at most 64, and the same zeros.

    Two products of it with uint8 add up in 16 bits, which is all that some instructions have.
    """
    wide = weight.astype(np.int16)
    return np.asarray(np.sign(wide) * ((np.abs(wide) + 1) // 2), np.int8)


class UnsupportedError(Exception):
    """The engine cannot run this layer, or not as asked, on this machine; the message says why."""


@dataclass(frozen=True)
class Quantization:
    """What the integers of an int8 layer stand for: real = scale * (integer - zero point)."""

    weight_scales: Array
    """float32 [M], one an output row; the zero point of weights is 0."""
    x_scale: float
    x_zero: int
    y_scale: float
    y_zero: int

    @property
    def bias_scales(self) -> Array:
        """float32 [M]: what one of the sum of products, and of the int32 bias, stands for."""
        return self.weight_scales * np.float32(self.x_scale)


@dataclass(frozen=True)
class Layer:
    """One layer. Linear: weight [M, K], x [N, K]; convolution: NCHW, batch 1.

    In float32, or of `dtype` bfloat16, where an engine rounds weight and x itself, or of int8: then
    the weight is int8, the bias int32, and `quantization` says what they stand for. x and y are of
    type `io`; a bfloat16 x is handed over as float32, and its y handed back so. A uint8 y is
    saturated, which is a ReLU where its zero point is 0.
    """

    op: str
    """``linear`` or ``conv``."""
    weight: Array
    bias: Array
    x: Array
    stride: int
    padding: int
    cold_bytes: int
    """Bytes that rotated copies of the weight exceed; 0: one copy, warm."""
    io: str = "float32"
    quantization: Quantization | None = None

    @staticmethod
    def load(folder: Path, facts: dict[str, Any]) -> Layer:
        """Read ``weight.npy``, ``bias.npy`` and ``x.npy``; the rest comes from the request.

        An int8 layer has ``weight_scales.npy`` too.

        The weight is mapped, and copied where it is written to: every peer reads the same pages.

        Raises:
            OSError: a file is missing.
            ValueError: a file holds pickled objects.
        """
        weight = np.load(folder / "weight.npy", mmap_mode="c", allow_pickle=False)
        bias, x = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("bias", "x"))
        quantization = None
        if "quantization" in facts:
            scales = np.load(folder / "weight_scales.npy", allow_pickle=False)
            quantization = Quantization(scales, **facts["quantization"])
        return Layer(
            facts["op"], weight, bias, x, facts["stride"], facts["padding"], facts["cold_bytes"],
            facts.get("io", "float32"), quantization,
        )  # fmt: skip

    @property
    def quantized(self) -> Quantization:
        """The scales of an int8 layer.

        Raises:
            UnsupportedError: the layer has another type.
        """
        if self.quantization is None:
            raise UnsupportedError("expected an int8 layer")
        return self.quantization

    @property
    def real_weight(self) -> Array:
        """The weight as float32, of an int8 layer too."""
        if self.quantization is None:
            return self.weight
        rows = (-1, *(1 for _ in self.weight.shape[1:]))
        return self.weight * self.quantization.weight_scales.reshape(rows)

    @property
    def float_bias(self) -> Array:
        """The bias as float32 [M], of an int8 layer too."""
        if self.quantization is None:
            return self.bias
        return self.bias.astype(np.float32) * self.quantization.bias_scales

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
    held: Array | None = None
    """An x of its own that the engine was given the address of, which keeps no array alive."""


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
