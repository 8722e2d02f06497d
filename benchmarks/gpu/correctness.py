"""Every GPU row against float64, before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.layers import options, pruned
from benchmarks.gpu.rows import Checked
from sparseinfer import pack
from sparseinfer.kernels.registry import EDGES, Row
from sparseinfer.ops.run_conv import conv_cuda
from sparseinfer.ops.run_linear import linear_cuda

EPS = 2.0**-24
EPS_OUT = {"float32": EPS, "float16": 2.0**-11, "bfloat16": 2.0**-7}
"""Of the output's rounding. bfloat16's is that of the interpreter, which truncates."""
TINY = {"float32": 2.0**-149, "float16": 2.0**-25, "bfloat16": 2.0**-133}

PATTERNS = {"nm": "2:4", "bsr": "block32", "csr": "random"}


def check(row: Row, device: torch.device, *, tiny: bool) -> Iterator[Checked]:
    """Run a row at N on both sides of every edge that it takes, in every type that it takes.

    Shapes are ragged but for those that a format needs whole; a row that fails is reported as such.
    """
    sizes = [(50, 70)] if tiny else [(130, 261), (512, 1024)]
    if row.format == "bsr":
        sizes = [(64, 64)] if tiny else [(128, 256), (512, 1024)]
    for dtype in row.dtype.split(", "):
        for m, k in sizes:
            for n in _tokens(row, tiny):
                shape = f"{m}x{k} N={n}"
                try:
                    excess = _excess(row, m, k, n, getattr(torch, dtype), device)
                    yield Checked(row.name, dtype, shape, excess <= 0, excess)
                except Exception as error:  # whatever a kernel raises: it is the finding
                    yield Checked(row.name, dtype, shape, False, 0.0, f"{error}".splitlines()[0])


def _tokens(row: Row, tiny: bool) -> list[int]:
    around = sorted({edge + step for edge in EDGES for step in (0, 1)})
    fit = [n for n in around if row.least <= n <= (row.most or n)]
    return fit[:2] if tiny else fit


def _excess(row: Row, m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> float:
    """The most that an output exceeds |y - y64| <= (K + 2) eps (|W| |x| + |b|) and its rounding."""
    torch.manual_seed(0)
    weight = pruned(torch.randn(m, k), PATTERNS[row.format], 0.9).to(dtype)
    bias, told = torch.randn(m).to(dtype), options(PATTERNS[row.format])
    if row.op == "conv":
        side = max(3, round(n**0.5))
        kernels = weight.reshape(m, k, 1, 1)
        x = torch.randn(1, k, side, side).to(dtype)
        packed = pack(kernels, row.format, **told).to(device)
        y = conv_cuda(
            x.to(device), packed, bias.to(device), m, (1, 1), (1, 1), (0,) * 4, (1, 1), 1, row=row
        )
        exact = F.conv2d(x.double(), kernels.double(), bias.double())
        size = F.conv2d(x.double().abs(), kernels.double().abs(), bias.double().abs())
    else:
        x = torch.randn(n, k).to(dtype)
        packed = pack(weight, row.format, **told).to(device)
        y = linear_cuda(x.to(device), packed, bias.to(device), m, row=row)
        exact = F.linear(x.double(), weight.double(), bias.double())
        size = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    return _beyond(y.cpu(), exact, size, k)


def _beyond(y: Tensor, exact: Tensor, size: Tensor, k: int) -> float:
    name = str(y.dtype).removeprefix("torch.")
    bound = (k + 2) * EPS * size + EPS_OUT[name] * exact.abs() + TINY[name]
    return ((y.double() - exact).abs() - bound).max().item()
