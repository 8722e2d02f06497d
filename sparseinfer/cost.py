"""The cost model: dense and sparse time of a CPU layer, when there is nothing to measure.

    dense  = DENSE_CALL_US + max(2 M K N / rate(threads), 4 M K / bandwidth)
    sparse = SPARSE_CALL_US + (dense - DENSE_CALL_US) / gain(density, N, format)

A transposed convolution spends `INTERLEAVE_CALL_US` and `INTERLEAVE_NS` an output besides.
`gain` interpolates the measured table `GAIN` (panel format, fp32, AVX-512, warm weights) between
densities, in logarithms; N falls in one of three classes, and N = 1 has a table of its own for
weights that stay in a cache. Absolute times are those of one core of the machine that the tables
were measured on: only the ratio decides. It is a guess that errs to the dense side;
`example_inputs` replaces it by a measurement.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["ASSUMED_N", "Estimate", "estimate", "worst_estimate"]

DENSE_GFLOPS = 95.0
"""fp32 rate of a dense layer on one core, in 1e9 operations a second (a multiply-add counts as
two)."""

BANDWIDTH_GBS = 25.0
"""Memory read rate, in 1e9 bytes a second, shared by the cores."""

DENSE_CALL_US = 4.0
SPARSE_CALL_US = 8.0
"""Time of a call that computes next to nothing, in microseconds."""

INTERLEAVE_CALL_US = 25.0
INTERLEAVE_NS = 0.7
"""Time to interleave the phases of a transposed convolution: of a call, and of each output."""

DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)

GAIN: dict[int, tuple[float, ...]] = {
    1: (12.0, 8.0, 4.8, 2.8, 2.0, 1.4, 0.95),
    2: (8.0, 5.0, 3.0, 1.8, 1.35, 1.05, 0.8),
    16: (12.0, 6.0, 4.0, 2.5, 1.9, 1.4, 0.9),
}
"""Speed of the sparse kernel over the dense one at `DENSITIES`, by the smallest N of the class.

Read off `benchmarks/results/epyc-zen4-2core.json`, rounded towards the worse cases: 3x3
convolutions for N >= 16, weights from memory for N = 1."""

CACHED_GAIN = (3.0, 2.1, 1.4, 0.9, 0.8, 0.65, 0.65)
"""The same for N = 1 where the dense weight stays in a cache, which dense then reads fast."""

CACHE_BYTES = 32e6
"""Last-level cache of the machine that the tables were measured on."""

FORMAT_GAIN = {"panel": 1.0, "csr": 0.4, "nm": 0.4}
"""Speed of the other formats' kernels relative to the panel ones."""

CONV_GAIN = 0.65
"""Share of it that a convolution reaches which pays most for its image: stride 2, two threads."""

FEW_CHANNELS_K = 16
FEW_CHANNELS_GAIN = 0.5
"""With fewer columns than this (depthwise convolutions, RGB inputs) a row is too short to pay for
its bookkeeping."""

ASSUMED_N = {
    "linear": (1, 128),
    "conv1d": (128,),
    "conv2d": (196,),
    "convtranspose1d": (256,),
    "convtranspose2d": (784,),
    **dict.fromkeys(("lstm", "gru", "rnn"), (1,)),
}
"""N assumed where no input was given: the worse of 1 and 128 tokens, 14 x 14 pixels; twice that
along each axis where a layer usually doubles it."""


@dataclass(frozen=True)
class Estimate:
    """Modelled milliseconds of one call, dense and sparse, at N tokens or pixels.

    Example:
        >>> Estimate(dense_ms=2.0, sparse_ms=1.0, N=1).speedup
        2.0
    """

    dense_ms: float
    sparse_ms: float
    N: int

    @property
    def speedup(self) -> float:
        """Dense over sparse time."""
        return self.dense_ms / self.sparse_ms


def estimate(
    M: int, K: int, N: int, density: float, threads: int = 1, format: str = "panel",
    kind: str = "linear",
) -> Estimate:  # fmt: skip
    """Model the time of a layer of M rows and K columns (of one group, where there are groups).

    `density` is non-zeros over M K, 0 to 1. `kind` is that of `sparseinfer.scan.Layer`.

    Raises:
        ValueError: density is not within 0 to 1.

    Source: the rates are measured (see benchmarks/); the form is the roofline of Williams, Waterman
    and Patterson, "Roofline: an insightful visual performance model", CACM 2009.

    Example:
        >>> estimate(768, 768, 128, density=0.1).speedup > 2
        True
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"expected a density of 0 to 1, got {density}; try nnz / (M * K)")
    arithmetic_us = 2.0 * M * K * N / (DENSE_GFLOPS * 1e3 * threads)
    memory_us = 4.0 * M * K / (BANDWIDTH_GBS * 1e3)
    work_us = max(arithmetic_us, memory_us)
    table = CACHED_GAIN if N <= 1 and 4.0 * M * K < CACHE_BYTES else GAIN[_class(N)]
    gain = _gain(density, table) * FORMAT_GAIN[format]
    if kind.startswith("conv"):
        gain *= CONV_GAIN
    if K < FEW_CHANNELS_K:
        gain = min(gain, FEW_CHANNELS_GAIN)
    sparse_us = sparse_call_us(kind) + work_us / gain
    if kind.startswith("convtranspose"):
        sparse_us += INTERLEAVE_NS * M * N / 1e3
    return Estimate((DENSE_CALL_US + work_us) / 1e3, sparse_us / 1e3, N)


def sparse_call_us(kind: str) -> float:
    """Microseconds of a sparse call of this kind that computes next to nothing.

    Example:
        >>> sparse_call_us("conv2d") < sparse_call_us("convtranspose2d")
        True
    """
    return SPARSE_CALL_US + (INTERLEAVE_CALL_US if kind.startswith("convtranspose") else 0.0)


def worst_estimate(
    kind: str, M: int, K: int, density: float, threads: int = 1, format: str = "panel"
) -> Estimate:
    """The least favourable estimate over the N that are assumed for a layer of this kind.

    Example:
        >>> worst_estimate("linear", 64, 64, density=0.1).N
        1
    """
    guesses = (estimate(M, K, n, density, threads, format, kind) for n in ASSUMED_N[kind])
    return min(guesses, key=lambda guess: guess.speedup)


def _class(N: int) -> int:
    return max(smallest for smallest in GAIN if smallest <= max(1, N))


def _gain(density: float, row: tuple[float, ...]) -> float:
    if density <= DENSITIES[0]:
        return row[0]
    right = bisect_left(DENSITIES, density)
    left = right - 1
    share = math.log(density / DENSITIES[left]) / math.log(DENSITIES[right] / DENSITIES[left])
    return math.exp((1 - share) * math.log(row[left]) + share * math.log(row[right]))
