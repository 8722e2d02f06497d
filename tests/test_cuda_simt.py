"""The CUDA kernel's own source, compiled for the CPU over a model of a warp, against float64.

csrc/testing/simt gives each thread a fiber and each instruction the meaning that the PTX ISA
gives it: what is left for a GPU to prove is that the ISA's tables are the hardware's, and speed.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracle import EPS, sparse_weight
from torch import Tensor

from sparseinfer import formats
from sparseinfer.kernels.activations import ACTIVATIONS, activation_module
from sparseinfer.kernels.cuda import library
from sparseinfer.kernels.cuda.nm24_linear import workspace_bytes
from sparseinfer.kernels.cuda.stream import weight_stream
from sparseinfer.kernels.triton.nm_planes import NmMeta

CSRC = Path(__file__).resolve().parent.parent / "csrc"
EPS_OUT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY_OUT = {torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}
DTYPES = list(EPS_OUT)


@pytest.fixture(scope="module")
def simt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "expected the C++ compiler that built sparseinfer, got none on PATH"
    built = tmp_path_factory.mktemp("simt") / "libsimt.so"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-w",
         f"-I{CSRC}/testing/simt", f"-I{CSRC}", "-xc++", f"{CSRC}/cuda/nm24_linear.cu",
         "-o", str(built)],
        check=True,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "PATH", built)
        library.load.cache_clear()
        yield library.load()
    library.load.cache_clear()


def run(
    simt: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor | None = None,
    activation: str = "none", multiprocessors: int = 3, workspace: Tensor | None = None,
    start: int = 64, gap: int = 0,
) -> Tensor:  # fmt: skip
    """The kernel's y; x lies amid NaN from element `start`, with `gap` elements between rows."""
    (n, k), m = x.shape, len(weight)
    packed = formats.pack(weight, "nm", n=2, m=4)
    stream = weight_stream(packed, NmMeta.from_info(formats.info(packed)))
    memory = torch.full((start + n * (k + gap) + 64,), float("nan"), dtype=x.dtype)
    inside = memory.as_strided((n, k), (k + gap, 1), start)
    inside.copy_(x)
    y = torch.full((n + 2, m), float("nan"), dtype=x.dtype)
    if workspace is None:
        size = workspace_bytes(m, n, k, multiprocessors)
        workspace = torch.zeros(size + 256, dtype=torch.uint8)
    aligned = workspace[-workspace.data_ptr() % 256 :]
    status = simt.si_cuda_nm24_linear(
        1 if x.dtype is torch.float16 else 2, stream.data_ptr(), inside.data_ptr(),
        inside.stride(0), None if bias is None else bias.data_ptr(), y[1].data_ptr(), m, n, k,
        ACTIVATIONS.index(activation), aligned.data_ptr(), aligned.numel(), multiprocessors, None,
    )  # fmt: skip
    assert status == 0
    assert y[0].isnan().all() and y[-1].isnan().all(), "wrote outside y"
    tickets = aligned[: 4 * -(-m // 32)]
    assert not tickets.any(), "the counters are zero again"
    return y[1:-1]


def check(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> None:
    w64, x64 = weight.double(), x.double()
    b64 = torch.zeros(len(weight)).double() if bias is None else bias.double()
    exact = x64 @ w64.T + b64
    bound = (weight.shape[1] + 1) * EPS * (x64.abs() @ w64.abs().T + b64.abs())
    if activation != "none":
        bound = 1.13 * bound + 16 * EPS * exact.abs().clamp(min=1)
        exact = activation_module(activation)(exact)
    bound = bound + EPS_OUT[x.dtype] * (exact.abs() + bound) + TINY_OUT[x.dtype]
    assert ((y.double() - exact).abs() <= bound).all()


SHAPES = [
    # M, N, K: one of each tile of tokens, ragged and whole; K in one stage, two and many.
    (1, 1, 1),
    (33, 1, 130),
    (64, 8, 512),
    (70, 7, 1100),
    (100, 16, 520),
    (31, 13, 1536),
    (130, 32, 300),
    (65, 25, 770),
    (129, 64, 260),
    (40, 33, 1029),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_shapes(simt: ctypes.CDLL, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    torch.manual_seed(m)
    weight, bias = sparse_weight((m, k), 0.9, nm=(2, 4)).to(dtype), torch.randn(m).to(dtype)
    x = torch.randn(n, k).to(dtype)
    check(run(simt, x, weight, bias), x, weight, bias)


@pytest.mark.parametrize(("start", "gap"), [(64, 8), (64, 5), (61, 0), (65, 8)])
def test_pitch_and_alignment_of_x(simt: ctypes.CDLL, start: int, gap: int) -> None:
    torch.manual_seed(4)
    for k in (512, 507):
        weight, x = sparse_weight((34, k), 0.9, nm=(2, 4)).half(), torch.randn(3, k).half()
        y = run(simt, x, weight, start=start, gap=gap)
        check(y, x, weight)
        assert torch.equal(y, run(simt, x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_are_exact(simt: ctypes.CDLL, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = sparse_weight((50, 600), 0.05, integers=True, nm=(2, 4)).to(dtype)
    x = torch.randint(-2, 3, (9, 600)).to(dtype)
    exact = x.double() @ weight.double().T
    assert exact.abs().max() <= 256, "what bfloat16 holds exactly"
    assert torch.equal(run(simt, x, weight).double(), exact)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(simt: ctypes.CDLL, dtype: torch.dtype, activation: str) -> None:
    torch.manual_seed(1)
    weight, bias = sparse_weight((40, 20), 0.9, nm=(2, 4)).to(dtype), torch.randn(40).to(dtype)
    x = torch.randn(4, 20).to(dtype)
    check(run(simt, x, weight, bias, activation), x, weight, bias, activation)
    nan = run(simt, torch.full((1, 20), float("nan")).to(dtype), weight, bias, activation)
    kept = (weight != 0).any(dim=1)
    assert nan[:, kept].isnan().all(), "NaN passes through an activation"


@pytest.mark.parametrize("n", [5, 12, 30, 60])
def test_split_k_is_the_same_whichever_block_comes_last(simt: ctypes.CDLL, n: int) -> None:
    torch.manual_seed(2)
    m, k = 70, 2000
    splits = ctypes.c_int()
    size = simt.si_cuda_nm24_workspace(m, n, k, 8, ctypes.byref(splits))
    assert splits.value > 1 and size > 0
    weight, x = sparse_weight((m, k), 0.9, nm=(2, 4)).half(), torch.randn(n, k).half()
    # Partial sums that an earlier call left there do not matter.
    workspace = torch.full((size + 256,), 0xFF, dtype=torch.uint8)
    start = -workspace.data_ptr() % 256
    workspace[start : start + 4 * -(-m // 32)] = 0
    y = run(simt, x, weight, multiprocessors=8, workspace=workspace)
    check(y, x, weight)
    simt.si_simt_last_block_first(1)
    try:
        again = run(simt, x, weight, multiprocessors=8, workspace=workspace)
    finally:
        simt.si_simt_last_block_first(0)
    assert torch.equal(y, again)
    # On a device too small to split for, K is cut otherwise.
    check(run(simt, x, weight, multiprocessors=1), x, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_and_signed_zero(simt: ctypes.CDLL, dtype: torch.dtype) -> None:
    weight = torch.zeros(35, 10, dtype=dtype)
    weight[34, 9], weight[1, 2], weight[2, 0], weight[3, 5] = float("nan"), float("inf"), -0.0, 2
    y = run(simt, torch.ones(3, 10, dtype=dtype), weight)
    assert y[:, 34].isnan().all() and (y[:, 1] == float("inf")).all() and (y[:, 3] == 2).all()
    rest = [row for row in range(34) if row not in (1, 3)]
    assert (y[:, rest] == 0).all()
    x = torch.ones(3, 10, dtype=dtype)
    x[1, 7] = float("nan")
    weight[4, 7] = 1
    y = run(simt, x, weight)
    assert y[1, 4].isnan() and (y[[0, 2], 4] == 1).all()
    assert (y[:, 3] == 2).all(), "NaN of x under a pruned weight stays out"


def test_bad_arguments_are_refused(simt: ctypes.CDLL) -> None:
    good = dict(value_type=1, weights=4096, x=4096, pitch=8, bias=None, y=4096, m=8, n=2, k=8,
                activation=0, workspace=None, bytes=0, multiprocessors=4, stream=None)  # fmt: skip
    bad = [
        {"value_type": 0}, {"weights": None}, {"weights": 4104}, {"x": None}, {"pitch": 7},
        {"y": None}, {"m": 0}, {"n": 0}, {"n": 65}, {"k": 0}, {"k": 2**30 + 1}, {"activation": -1},
        {"activation": 8}, {"multiprocessors": 0}, {"k": 4096, "pitch": 4096},
        {"k": 4096, "pitch": 4096, "workspace": 4100, "bytes": 1 << 20},
    ]  # fmt: skip
    for change in bad:
        assert simt.si_cuda_nm24_linear(*(good | change).values()) == -1, change
    assert simt.si_cuda_error_string(-1) == b"invalid argument"
    with pytest.raises(ValueError, match=r"1 <= N <= 64.* got M = 8, N = 65, K = 8"):
        workspace_bytes(8, 65, 8, 4)
