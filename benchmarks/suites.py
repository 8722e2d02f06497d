"""The suites: which contenders meet dense PyTorch, on which cases."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from benchmarks import cases
from benchmarks.cases import Case, ConvCase, LinearCase, Pattern
from benchmarks.layer_data import LayerData
from benchmarks.native import NativeRun, Packed, best_row, pack
from benchmarks.results import Row, make_row
from sparseinfer import _C
from sparseinfer.layers.linear_conv import SparseConv2d, SparseLinear
from sparseinfer.timing.rounds import Plan, Rotation, interleave

COLD_BYTES = 128 * 2**20
"""Rotated copies of a weight exceed this, four times the last-level cache of a common server."""


@dataclass(frozen=True)
class Job:
    """One problem of one suite, to be measured at every thread count."""

    suite: str
    case: Case
    pattern: Pattern


@dataclass(frozen=True)
class Contender:
    """What takes part in a measurement: the calls to time, and how to get a result to verify."""

    name: str
    calls: Sequence[Callable[[], object]]
    result: Callable[[], torch.Tensor]
    kernel: str | None = None
    packed_bytes: int | None = None
    unit: float = 0.0
    """Unit roundoff of the type that it rounds weights to; 0: none narrower than float32."""


BFLOAT16_UNIT = 2.0**-9


def _dense(data: LayerData, copies: int = 1) -> Contender:
    x, bias = data.x, data.bias
    weights = [data.weight, *(data.weight.clone() for _ in range(copies - 1))]

    def call_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: data.dense(x, weight, bias)

    calls = [call_with(weight) for weight in weights]
    return Contender("dense", calls, calls[0])


def _kernel(
    data: LayerData, threads: int, format_name: str = "panel", name: str = "kernel",
    copies: int = 1, value_type: str = "float32",
) -> Contender:  # fmt: skip
    packed = pack(data.case, data.pattern, format_name, value_type)
    run = NativeRun(data, threads)
    every: list[Packed] = [packed, *(packed.copy() for _ in range(copies - 1))]
    return Contender(
        name,
        [run.call(one) for one in every],
        lambda: run.result(packed),
        best_row(format_name, data.case),
        packed.blob.numel(),
        BFLOAT16_UNIT if value_type == "bfloat16" else 0.0,
    )


def _kernels(data: LayerData, threads: int) -> list[Contender]:
    return [_dense(data), _kernel(data, threads)]


def _module(data: LayerData, threads: int) -> list[Contender]:
    case = data.case
    dense: nn.Linear | nn.Conv2d
    if isinstance(case, ConvCase):
        dense = nn.Conv2d(case.c, case.m, case.kernel, case.stride, case.padding)
    else:
        dense = nn.Linear(case.k, case.m)
    dense.load_state_dict({"weight": data.weight, "bias": data.bias})
    dense.eval()
    kind = SparseConv2d if isinstance(dense, nn.Conv2d) else SparseLinear
    sparse = kind.from_dense(copy.deepcopy(dense), format="panel", kblock=case.kblock)

    def call_of(module: nn.Module) -> Callable[[], torch.Tensor]:
        x = data.x
        return lambda: module(x)

    kernel = _kernel(data, threads)
    return [
        Contender("dense", [call_of(dense)], call_of(dense)),
        kernel,
        Contender("module", [call_of(sparse)], call_of(sparse), kernel.kernel, kernel.packed_bytes),
    ]


def _cold(data: LayerData, threads: int) -> list[Contender]:
    contenders = [_dense(data, COLD_BYTES // data.dense_bytes + 1)]
    for name, value_type in (("kernel", "float32"), ("kernel, bfloat16", "bfloat16")):
        packed = pack(data.case, data.pattern, "panel", value_type)
        # One copy more than fill the limit: a copy has left the cache when its turn is back.
        copies = COLD_BYTES // packed.blob.numel() + 2
        contenders.append(_kernel(data, threads, name=name, copies=copies, value_type=value_type))
    return contenders


def _torch_csr(data: LayerData) -> Contender:
    x = data.x.t().contiguous()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        weight = data.weight.to_sparse_csr()
    size = weight.values().nbytes + weight.col_indices().nbytes + weight.crow_indices().nbytes
    return Contender(
        "torch.sparse_csr",
        [lambda: weight @ x],
        lambda: (weight @ x).t(),
        packed_bytes=size,
    )


def _runs_here(format_name: str, case: Case) -> bool:
    return any(
        (row["format"], row["op"]) == (format_name, case.op) and not row["reasons"]
        for row in _C.rows()
    )


def _packed_formats(data: LayerData, threads: int) -> list[Contender]:
    contenders = [_dense(data)]
    for format_name in ("panel", "csr", "nm"):
        fits = format_name != "nm" or data.pattern.n_of_m is not None
        if fits and _runs_here(format_name, data.case):
            contenders.append(_kernel(data, threads, format_name, name=format_name))
    return contenders


def _formats(data: LayerData, threads: int) -> list[Contender]:
    contenders = _packed_formats(data, threads)
    if isinstance(data.case, LinearCase):
        contenders.append(_torch_csr(data))
    return contenders


@dataclass(frozen=True)
class Suite:
    """Cases and patterns, and the function that sets up the contenders, dense first."""

    cases: Sequence[Case]
    patterns: Sequence[Pattern]
    contenders: Callable[[LayerData, int], list[Contender]]
    with_bias: bool = True


SUITES = {
    "kernels": Suite(cases.KERNELS, cases.UNSTRUCTURED, _kernels),
    "module": Suite(cases.PROMISED, cases.UNSTRUCTURED, _module),
    "cold": Suite(cases.COLD, cases.UNSTRUCTURED, _cold),
    # torch's sparse product takes no bias, so nobody gets one.
    "formats": Suite(
        cases.FORMATS, (*cases.UNSTRUCTURED, *cases.N_OF_M), _formats, with_bias=False
    ),
    "patterns": Suite(cases.PATTERNS, cases.STRUCTURED, _packed_formats),
    "linearity": Suite(cases.LINEARITY, (Pattern(cases.LINEARITY_SPARSITY),), _kernels),
}


def jobs(names: Sequence[str], *, quick: bool = False) -> Iterator[Job]:
    """Yield the jobs of the suites, in an order in which neighbours share a packed weight."""
    for name in names:
        suite = SUITES[name]
        chosen = [case for case in suite.cases if not quick or case in cases.QUICK]
        patterns = [
            pattern
            for pattern in suite.patterns
            if not quick or pattern.n_of_m == (2, 4) or pattern.sparsity in cases.QUICK_SPARSITIES
        ]
        for _, alike in itertools.groupby(chosen, key=lambda case: case.weight_shape):
            for pattern, case in itertools.product(patterns, list(alike)):
                yield Job(name, case, pattern)


@lru_cache(maxsize=1)
def _data_of(case: Case, pattern: Pattern, with_bias: bool) -> LayerData:
    """Share data and float64 reference between the thread counts of a job."""
    return LayerData(case, pattern, with_bias=with_bias)


def measure(job: Job, threads: int, plan: Plan) -> list[Row]:
    """Verify every contender of a job against float64, then time them and return their rows.

    Raises:
        WrongResultError: a contender's result is beyond the rounding bound; nothing was timed.
    """
    suite = SUITES[job.suite]
    torch.set_num_threads(threads)
    data = _data_of(job.case, job.pattern, suite.with_bias)
    contenders = suite.contenders(data, threads)
    with torch.inference_mode():
        for contender in contenders:
            data.verify(contender.name, contender.result(), contender.unit)
        calls = {one.name: Rotation(one.name, one.calls) for one in contenders}
        found = interleave(calls, plan, collect=False)
    dense, *others = contenders
    return [
        make_row(
            found,
            other.name,
            suite=job.suite,
            group=job.case.group
            + (", cold" if job.suite == "cold" else "")
            + (", bfloat16 values" if other.unit else ""),
            case=job.case.name,
            op=job.case.op,
            m=job.case.m,
            k=job.case.k,
            n=job.case.n,
            pattern=job.pattern.name,
            sparsity=job.pattern.sparsity,
            nnz=data.nnz,
            threads=threads,
            promised=cases.promised(job.case),
            kernel=other.kernel,
            dense_bytes=data.dense_bytes,
            packed_bytes=other.packed_bytes,
            copies=(len(dense.calls), len(other.calls)),
        )
        for other in others
    ]
