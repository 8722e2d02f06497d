"""The cost model: dense and sparse time of a CPU layer, when there is nothing to measure.

Its form and its parameters are those of `sparseinfer.timing.rates`: fitted on this machine where
`python -m benchmarks.calibrate` ran (`sparseinfer.timing.calibration`), else those of
`sparseinfer.timing.builtin_rates`. Another target than this machine has those of its instruction
set, or none. Where neither N nor a convolution's geometry is known it errs to
the dense side; `example_inputs` replaces it by a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparseinfer.timing import builtin_rates, calibration
from sparseinfer.timing.machine import HOST, target_isa
from sparseinfer.timing.rates import Model, Rates, class_of, parse, work

__all__ = ["Estimate", "estimate", "has_rates", "predict", "worst_estimate"]

INTERLEAVE_CALL_US = 25.0
INTERLEAVE_NS = 0.7
"""Time to interleave the phases of a transposed convolution: of a call, and of each output."""

FEW_CHANNELS_K = 16
FEW_CHANNELS_GAIN = 0.5
"""With fewer columns than this (depthwise convolutions, RGB inputs) a row is too short to pay for
its bookkeeping."""

_BUILTIN = parse(builtin_rates.MODEL)


@dataclass(frozen=True)
class Estimate:
    """Modelled milliseconds of one call, dense and sparse, at N tokens or pixels.

    Of them, `dense_call_ms` and `sparse_call_ms` are those of a call that computes next to nothing.

    Example:
        >>> Estimate(dense_ms=2.0, sparse_ms=1.0, N=1).speedup
        2.0
    """

    dense_ms: float
    sparse_ms: float
    N: int
    dense_call_ms: float = 0.0
    sparse_call_ms: float = 0.0

    @property
    def speedup(self) -> float:
        """Dense over sparse time."""
        return self.dense_ms / self.sparse_ms


def estimate(
    M: int, K: int, N: int, density: float, threads: int = 1, format: str = "panel",
    kind: str = "linear", target: str = HOST,
) -> Estimate:  # fmt: skip
    """Model the time of a layer of M rows and K columns (of one group, where there are groups).

    `density` is non-zeros over M K, 0 to 1. `kind` is that of `sparseinfer.convert.scan.Layer`: for
    a convolution the least favourable of the kernels that it may have. One of
    `sparseinfer.timing.rates.CONVOLUTIONS` tells which. `target` is one that `has_rates`.

    Raises:
        ValueError: density is not within 0 to 1, or the target is unknown or has no rates.

    Source: the form follows the roofline of Williams, Waterman and Patterson, "Roofline: an
    insightful visual performance model", CACM 2009, with sums in the place of its maximum.

    Example:
        >>> estimate(768, 768, 128, density=0.1).speedup > 2
        True
    """
    return predict(_model(target), M, K, N, density, threads, format, kind)


def has_rates(target: str) -> bool:
    """Whether it is known how fast a target computes.

    Raises:
        ValueError: there is no such target.

    Example:
        >>> has_rates("host"), has_rates("x86-64-avx512"), has_rates("aarch64-neon")
        (True, True, False)
    """
    return target == HOST or target_isa(target) == builtin_rates.ISA


def predict(
    model: Model, M: int, K: int, N: int, density: float, threads: int, format: str, kind: str
) -> Estimate:
    """`estimate` with the parameters of `model`.

    Raises:
        ValueError: density is not within 0 to 1.

    Example:
        >>> predict(_BUILTIN, 768, 768, 128, 0.1, 1, "panel", "linear").N
        128
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"expected a density of 0 to 1, got {density}; try nnz / (M * K)")
    guesses = []
    interleaved = kind.startswith("convtranspose")
    for name in class_of(kind, M, K, N, model.cache_bytes):
        call_us, work_us = _between(model, threads, name, format, kind, M, K, N, density)
        dense_us, sparse_us = work_us
        if K < FEW_CHANNELS_K:
            sparse_us = max(sparse_us, dense_us / FEW_CHANNELS_GAIN)
        sparse_call_us = call_us[1]
        if interleaved:
            sparse_call_us += INTERLEAVE_CALL_US
            sparse_us += INTERLEAVE_NS * M * N / 1e3
        guesses.append(
            Estimate(
                (call_us[0] + dense_us) / 1e3, (sparse_call_us + sparse_us) / 1e3, N,
                call_us[0] / 1e3, sparse_call_us / 1e3,
            )
        )  # fmt: skip
    return min(guesses, key=lambda guess: guess.speedup)


def worst_estimate(
    kind: str, M: int, K: int, density: float, tokens: Sequence[int], threads: Sequence[int] = (1,),
    format: str = "panel", target: str = HOST,
) -> Estimate:  # fmt: skip
    """The least favourable estimate over several N, and over several numbers of threads.

    The sparse work takes longer by the model's error: only a gain beyond it counts as one.

    Raises:
        ValueError: as `estimate`.

    Example:
        >>> worst_estimate("linear", 64, 64, density=0.1, tokens=(1, 128)).N
        1
    """
    guesses = (
        estimate(M, K, n, density, count, format, kind, target) for n in tokens for count in threads
    )
    worst = min(guesses, key=lambda guess: guess.speedup)
    doubt = (worst.sparse_ms - worst.sparse_call_ms) * _model(target).error
    return replace(worst, sparse_ms=worst.sparse_ms + doubt)


def _model(target: str) -> Model:
    """The built-in model is the best guess for a host that was never calibrated, whatever it is."""
    if target == HOST:
        return calibration.load(calibration.default_path()) or _BUILTIN
    if not has_rates(target):
        raise ValueError(
            f"expected a target that there is a cost model for, got {target!r}; try {HOST!r}"
        )
    return _BUILTIN


_Pair = tuple[float, float]


def _between(
    model: Model, threads: int, name: str, format: str, kind: str, M: int, K: int, N: int,
    density: float,
) -> tuple[_Pair, _Pair]:  # fmt: skip
    """Microseconds of call and of work, dense and sparse, at any number of threads.

    Between two numbers that were measured times follow a power of the number; above the most, work
    is divided evenly, which leaves the ratio as it is and lets the calls weigh more.
    """
    counts = list(model.threads)
    low = max((count for count in counts if count <= threads), default=counts[0])
    high = min((count for count in counts if count >= threads), default=counts[-1])
    share = math.log(threads / low) / math.log(high / low) if low < high else 0.0
    scale = max(1.0, threads / counts[-1])

    def times(rates: Rates) -> tuple[_Pair, _Pair]:
        both = [
            sum(
                picoseconds * often
                for picoseconds, often in zip(
                    rates.work[name][contender],
                    work(contender, kind, M, K, N, density),
                    strict=True,
                )
            )
            / (1e6 * scale)
            for contender in ("dense", format)
        ]
        return rates.calls["conv" if kind.startswith("conv") else "linear"], (both[0], both[1])

    def mix(a: _Pair, b: _Pair) -> _Pair:
        return a[0] ** (1 - share) * b[0] ** share, a[1] ** (1 - share) * b[1] ** share

    (call_low, work_low), (call_high, work_high) = (
        times(model.threads[low]),
        times(model.threads[high]),
    )
    return mix(call_low, call_high), mix(work_low, work_high)
