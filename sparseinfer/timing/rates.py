"""The parameters of the cost model: what a call and each part of its work take, by class of layer.

    dense  = call + a M K + b M K N
    sparse = call + a (M + K) N' + b C N' + c V N'

V = M K density are the non-zeros; C is what a format walks through beside them: in panels of four
rows the columns that are not empty, M K (1 - (1 - density)^4) / 4; nothing in csr and nm. N' is N
rounded up to the width of the kernel's tile. Each class of layers has its own a, b and c, which are
of about one N, one kind of kernel and one place of the weights (a cache, or memory).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CALLS",
    "CLASSES",
    "CONTENDERS",
    "PARTS",
    "Model",
    "Rates",
    "class_of",
    "parse",
    "work",
]

TOKENS = (1, 2, 5, 9, 17, 33)
"""The least N of each class of linear layers: the kernels change their tile there."""

_WIDTHS = {1: 1, 2: 4, 5: 8, 9: 16, 17: 32}

CONVOLUTIONS = ("conv 1x1", "conv kxk", "conv strided")

CLASSES = (
    *(f"linear {least}" for least in TOKENS),
    *(f"linear {least} memory" for least in TOKENS[:-1]),
    *CONVOLUTIONS,
)
"""Classes of layers. Many tokens hide where the weights come from."""

CALLS = ("linear", "conv")

CONTENDERS = ("dense", "panel", "csr", "nm")

PARTS = {"dense": 2, "panel": 3, "csr": 3, "nm": 3}
"""How many parts the work of each has: a, b and c above."""

MOST = 1e12
"""Bound of every parameter: a second, in picoseconds."""


@dataclass(frozen=True)
class Rates:
    """What holds for one number of threads.

    `calls` has the microseconds of a call that computes next to nothing, dense and sparse, for
    `linear` and `conv`; `work` the picoseconds of each part, by class and contender.
    """

    calls: Mapping[str, tuple[float, float]]
    work: Mapping[str, Mapping[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Model:
    """Rates by number of threads, and the bytes of weight that a cache holds for the next call.

    `error` is that which nine of ten modelled times keep, as a share of the measured time.
    """

    cache_bytes: float
    threads: Mapping[int, Rates]
    error: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The model as JSON has it: the inverse of `parse`."""
        return {
            "cache_bytes": self.cache_bytes,
            "error": self.error,
            "threads": {
                str(count): {
                    "calls": {kind: list(pair) for kind, pair in rates.calls.items()},
                    "work": {
                        name: {contender: list(parts) for contender, parts in own.items()}
                        for name, own in rates.work.items()
                    },
                }
                for count, rates in self.threads.items()
            },
        }


def class_of(kind: str, M: int, K: int, N: int, cache_bytes: float) -> tuple[str, ...]:
    """The classes that a layer may belong to: several where its kernel is not known.

    `kind` is that of `sparseinfer.convert.scan.Layer`, or one of `CONVOLUTIONS` itself. A recurrent
    layer runs the kernels of linear ones.

    Example:
        >>> class_of("linear", 768, 768, 6, 32e6), class_of("conv1d", 64, 64, 100, 32e6)[0]
        (('linear 5',), 'conv 1x1')
    """
    if kind in CONVOLUTIONS:
        return (kind,)
    if kind.startswith("conv"):
        return CONVOLUTIONS
    least = _least(N)
    outside = least != TOKENS[-1] and 4.0 * M * K > cache_bytes
    return (f"linear {least}{' memory' if outside else ''}",)


def work(contender: str, kind: str, M: int, K: int, N: int, density: float) -> tuple[float, ...]:
    """How often each part of the work occurs; times its picoseconds that is the time.

    Example:
        >>> work("dense", "linear", 4, 8, 2, density=0.5)
        (32.0, 64.0)
        >>> work("csr", "linear", 4, 8, 1, density=0.5)
        (12.0, 0.0, 16.0)
    """
    weights = float(M) * K
    if contender == "dense":
        return weights, weights * N
    width = N if kind.startswith("conv") else _WIDTHS.get(_least(N), N)
    columns = weights * (1 - (1 - density) ** 4) / 4 if contender == "panel" else 0.0
    return float(M + K) * width, columns * width, weights * density * width


def parse(data: object) -> Model:
    """The model in what JSON holds, whatever that is.

    Raises:
        ValueError: a part is missing, of another type, negative, not finite or absurdly large.

    Example:
        >>> try: parse({"threads": {}})
        ... except ValueError as refusal: str(refusal).partition(";")[0]
        'expected cache_bytes, error, threads in the model, got threads'
    """
    model = _mapping(data, ("cache_bytes", "error", "threads"), "the model")
    threads = model["threads"]
    if not isinstance(threads, dict) or not threads:
        raise ValueError("expected rates by number of threads; try calibrating anew")
    rates = {}
    for count, found in threads.items():
        if not isinstance(count, str) or not re.fullmatch(r"[1-9][0-9]{0,4}", count):
            raise ValueError(f"expected 1 to 99999 threads, got {str(count)[:20]!r}")
        own = _mapping(found, ("calls", "work"), f"{count} threads")
        calls = {}
        for kind, pair in _mapping(own["calls"], CALLS, "calls").items():
            dense, sparse = _numbers(pair, 2, kind)
            if not (dense > 0 and sparse > 0):
                raise ValueError(f"expected calls that take time, got {pair} for {kind}")
            calls[kind] = (dense, sparse)
        table = {
            name: {
                contender: _numbers(parts, PARTS[contender], f"{name}, {contender}")
                for contender, parts in _mapping(by, CONTENDERS, name).items()
            }
            for name, by in _mapping(own["work"], CLASSES, "work").items()
        }
        rates[int(count)] = Rates(calls, table)
    cache_bytes, error = _numbers([model["cache_bytes"], model["error"]], 2, "the model")
    return Model(cache_bytes, dict(sorted(rates.items())), error)


def _least(N: int) -> int:
    return max(least for least in TOKENS if least <= max(1, N))


def _mapping(data: object, names: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != set(names):
        got = ", ".join(sorted(map(str, data))[:20])[:200] if isinstance(data, dict) else ""
        raise ValueError(
            f"expected {', '.join(names)} in {where}, got {got or 'nothing'}; try calibrating anew"
        )
    return {name: data[name] for name in names}


def _numbers(data: object, count: int, where: str) -> tuple[float, ...]:
    if not isinstance(data, list) or len(data) != count:
        raise ValueError(f"expected {count} numbers for {where}; try calibrating anew")
    for value in data:
        if type(value) not in (int, float) or not 0 <= value <= MOST:
            raise ValueError(f"expected numbers of 0 to {MOST:g} for {where}; try calibrating anew")
    return tuple(float(value) for value in data)
