"""The mma.sp kernel on a GPU: what must pass before its row is enabled."""

from __future__ import annotations

import pytest
import torch
from oracle import EPS, sparse_weight
from torch import Tensor

from sparseinfer import formats
from sparseinfer.kernels.activations import ACTIVATIONS, activation_module
from sparseinfer.kernels.cuda.library import missing_reasons
from sparseinfer.kernels.cuda.nm24_linear import new_workspace, nm24_linear
from sparseinfer.kernels.cuda.stream import weight_stream
from sparseinfer.kernels.triton.nm_planes import NmMeta

EPS_OUT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DTYPES = list(EPS_OUT)


def needs_gpu(what: str) -> pytest.MarkDecorator:
    missing = not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0)
    reason = "no CUDA device of compute capability 8.0" if missing else "; ".join(missing_reasons())
    return pytest.mark.skipif(bool(reason), reason=f"{reason}; it would {what}")


class Layer:
    """A weight as the kernel takes it, on the GPU."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        packed = formats.pack(weight, "nm", n=2, m=4)
        meta = NmMeta.from_info(formats.info(packed))
        self.stream = weight_stream(packed.cuda(), meta)
        assert torch.equal(self.stream.cpu(), weight_stream(packed, meta)), "packed alike anywhere"
        self.workspace = new_workspace(*weight.shape[:1], 64, weight.shape[1], self.stream.device)

    def __call__(self, x: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        m = len(self.weight)
        return nm24_linear(x, self.stream, bias, m, activation, workspace=self.workspace)

    def check(self, x: Tensor, bias: Tensor | None = None, activation: str = "none") -> None:
        y = self(x, bias, activation)
        w64, x64 = self.weight.double(), x.cpu().double()
        b64 = torch.zeros(len(w64)).double() if bias is None else bias.cpu().double()
        exact = x64 @ w64.T + b64
        bound = (w64.shape[1] + 1) * EPS * (x64.abs() @ w64.abs().T + b64.abs())
        if activation != "none":
            bound = 1.13 * bound + 16 * EPS * exact.abs().clamp(min=1)
            exact = activation_module(activation)(exact)
        bound = bound + EPS_OUT[x.dtype] * (exact.abs() + bound) + 2.0**-25
        assert ((y.cpu().double() - exact).abs() <= bound).all()


def layer(m: int, k: int, dtype: torch.dtype) -> Layer:
    return Layer(sparse_weight((m, k), 0.9, nm=(2, 4)).to(dtype))


@needs_gpu("compare the mma.sp kernel with float64 on ragged and whole shapes")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (33, 130), (129, 1029), (1000, 4096), (4096, 4096)])
def test_every_n(dtype: torch.dtype, m: int, k: int) -> None:
    torch.manual_seed(m)
    tested, bias = layer(m, k, dtype), torch.randn(m).to(dtype).cuda()
    for n in (1, 2, 7, 8, 9, 16, 17, 32, 33, 64):
        tested.check(torch.randn(n, k).to(dtype).cuda(), bias)


@needs_gpu("prove the tensor core's fragment layout: each element of W comes out where it was")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identity_gives_the_weight_back(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    tested = layer(96, 64, dtype)
    assert torch.equal(tested(torch.eye(64, dtype=dtype).cuda()).cpu().T, tested.weight)


@needs_gpu("compare the fused activations with float64, and pass NaN through them")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activation(dtype: torch.dtype, activation: str) -> None:
    torch.manual_seed(6)
    tested, bias = layer(40, 200, dtype), torch.randn(40).to(dtype).cuda()
    tested.check(torch.randn(3, 200).to(dtype).cuda(), bias, activation)
    nan = torch.full((1, 200), float("nan"), dtype=dtype).cuda()
    assert tested(nan, bias, activation).isnan().all()


@needs_gpu("pass NaN and Inf through kept weights only, and take -0.0 for a zero")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_and_signed_zero(dtype: torch.dtype) -> None:
    weight = torch.zeros(35, 10, dtype=dtype)
    weight[34, 9], weight[1, 2], weight[2, 0], weight[3, 5] = float("nan"), float("inf"), -0.0, 2
    x = torch.ones(3, 10, dtype=dtype).cuda()
    x[1, 7] = float("nan")
    y = Layer(weight)(x).cpu()
    assert y[:, 34].isnan().all() and (y[:, 1] == float("inf")).all() and (y[:, 3] == 2).all()
    assert (y[:, [row for row in range(34) if row not in (1, 3)]] == 0).all()


@needs_gpu("read x at any alignment, pitch and number of dimensions")
def test_layouts_of_x() -> None:
    torch.manual_seed(7)
    tested, base = layer(34, 512, torch.float16), torch.randn(9, 600).half().cuda()
    for x in (base[:, :512], base[:, 3:515], base[0, 1:513], base[:8, :512].view(2, 4, 512)):
        assert torch.equal(tested(x), tested(x.clone()))
    tested.check(base[:0, :512])
    assert torch.equal(tested(base[:1, :512].expand(5, 512)), tested(base[[0] * 5, :512]))


@needs_gpu("give the same bits at every call, from a captured CUDA graph and on two streams")
def test_deterministic_and_capturable() -> None:
    torch.manual_seed(8)
    tested, x = layer(256, 8192, torch.bfloat16), torch.randn(8, 8192).bfloat16().cuda()
    y = tested(x)
    for _ in range(20):
        assert torch.equal(tested(x), y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tested(x)
    captured.zero_()
    x.neg_()
    graph.replay()
    assert torch.equal(captured, -y)
    other, side = layer(256, 8192, torch.bfloat16), torch.cuda.Stream()
    expected = other(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        beside = [other(x) for _ in range(20)]
    here = [tested(x) for _ in range(20)]
    torch.cuda.synchronize()
    assert all(torch.equal(got, expected) for got in beside)
    assert all(torch.equal(got, -y) for got in here)


@needs_gpu("refuse a workspace that is too small or not aligned")
def test_workspace_is_checked() -> None:
    tested = layer(64, 8192, torch.float16)
    x = torch.ones(1, 8192).half().cuda()
    for workspace in (tested.workspace[:256], tested.workspace[16:]):
        with pytest.raises(ValueError, match=r"bytes of workspace .* try new_workspace"):
            nm24_linear(x, tested.stream, None, 64, "none", workspace=workspace)
