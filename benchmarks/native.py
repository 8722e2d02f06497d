"""Contenders that call the native kernels by address, without the Python modules around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case, ConvCase, Pattern
from benchmarks.layer_data import LayerData, make_weight
from sparseinfer import _C


class Packed:
    """A packed weight and the native handle that points into it."""

    def __init__(self, blob: torch.Tensor) -> None:
        self.blob = blob
        self.handle = _C.Weights(blob.data_ptr(), blob.numel())

    def copy(self) -> Packed:
        """Return the same weight at another address."""
        return Packed(self.blob.clone())


@lru_cache(maxsize=4)
def pack(case: Case, pattern: Pattern, format_name: str, value_type: str = "float32") -> Packed:
    """Pack the case's weight, which ``make_weight`` returns, with panel's values in a type.

    Raises:
        ValueError: the format cannot store the weight.
    """
    params: dict[str, Any] = {}
    if format_name == "nm" and pattern.n_of_m is not None:
        params = {"n": pattern.n_of_m[0], "m": pattern.n_of_m[1]}
    elif format_name == "panel":
        params = {"kblock": case.kblock, "value_type": value_type}
    weight = np.ascontiguousarray(make_weight(case.weight_shape, pattern).numpy())
    # A tensor of its own: torch aligns it to 64 bytes.
    return Packed(torch.from_numpy(_C.pack(format_name, weight, **params)).clone())


def best_row(format_name: str, case: Case) -> str:
    """Return the name of the row that runs the case on this CPU.

    Raises:
        RuntimeError: no row can.
    """
    return str(_C.rows()[_C.select(format_name, case.op)]["name"])


@dataclass
class NativeRun:
    """A call of one native row on one problem, with the buffers it reads and writes.

    Linear runs channel-major: x[K][N] to y[M][N]. Convolution runs on NCHW.
    """

    data: LayerData
    threads: int
    row: int = -1
    """Row id; -1 is the best usable row of the format."""
    x: torch.Tensor = field(init=False)
    y: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        case = self.data.case
        if isinstance(case, ConvCase):
            self.x = self.data.x.contiguous()
            self.y = torch.empty(1, case.m, case.out_size, case.out_size)
        else:
            self.x = self.data.x.t().contiguous()
            self.y = torch.empty(case.m, case.n)

    def call(self, packed: Packed) -> Callable[[], object]:
        """Return a callable without arguments that computes y from ``packed``.

        It keeps the packed weight and this object alive.
        """
        case, bias = self.data.case, self.data.bias
        addresses = (
            self.x.data_ptr(),
            self.y.data_ptr(),
            0 if bias is None else bias.data_ptr(),
        )
        run: Callable[..., object]
        args: tuple[Any, ...]
        if isinstance(case, ConvCase):
            run = packed.handle.conv
            stride, padding = (case.stride, case.stride), (case.padding,) * 4
            args = (1, case.size, case.size, stride, padding, (1, 1), "zeros")
        else:
            run = packed.handle.linear
            args = (case.n, case.n, case.n, True)
        args = (*addresses, *args, "none", self.row, self.threads)
        buffers = (packed.blob, self.x, self.y, bias)

        # The addresses in args do not keep their memory alive; the default argument does.
        def call(_buffers: object = buffers) -> object:
            return run(*args)

        return call

    def result(self, packed: Packed) -> torch.Tensor:
        """Run once on a NaN-filled output and return it in the shape dense PyTorch returns."""
        self.y.fill_(float("nan"))
        self.call(packed)()
        return self.y if isinstance(self.data.case, ConvCase) else self.y.t()
