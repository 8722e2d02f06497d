"""What native kernels keep for their next call is bounded, counted and given back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn
from torch.nn import functional

import sparseinfer
from sparseinfer import (
    SparseConv1d,
    SparseConv2d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseLinear,
    SparseLSTM,
)
from sparseinfer.layers import slabs, transposed

BOUND = 20 << 20
"""Bytes of scratch a thread, as documented."""

CALLS = {
    "a long signal": (nn.Conv1d(8, 4, 9, padding=4), SparseConv1d, (1, 8, 400_001)),
    "a dilated one": (nn.Conv1d(8, 4, 9, dilation=512), SparseConv1d, (1, 8, 300_000)),
    "a strided one": (nn.Conv1d(8, 4, 5, stride=2), SparseConv1d, (2, 8, 200_000)),
    "far taps": (nn.Conv1d(4, 4, 3, dilation=100_000), SparseConv1d, (1, 4, 400_000)),
    "an image": (nn.Conv2d(4, 4, 3, padding=1), SparseConv2d, (1, 4, 1080, 1920)),
    "groups": (nn.Conv2d(8, 8, 3, stride=2, groups=8), SparseConv2d, (1, 8, 900, 900)),
    "reflected": (
        nn.Conv1d(4, 4, 7, padding=3, padding_mode="reflect"), SparseConv1d, (1, 4, 400_000)
    ),
    "many tokens": (nn.Linear(1024, 8), SparseLinear, (6_000, 1024)),
}  # fmt: skip


@pytest.fixture
def set_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("threads", [1, 2])
def test_scratch_stays_in_bounds(name: str, threads: int, set_threads: None) -> None:
    dense, sparse, shape = CALLS[name]
    layer = sparse.from_dense(dense)
    x = torch.randn(shape)
    torch.set_num_threads(threads)
    sparseinfer.release_scratch()
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(y, dense(x), rtol=1e-4, atol=1e-4)
    assert sparseinfer.scratch_bytes() <= threads * BOUND


def test_scratch_of_every_thread_is_given_back() -> None:
    layer = SparseConv2d.from_dense(nn.Conv2d(8, 8, 3))
    x = torch.randn(1, 8, 64, 64)
    with ThreadPoolExecutor(3) as pool:
        expected = list(pool.map(layer, [x] * 6))
        assert sparseinfer.scratch_bytes() > 0
        sparseinfer.release_scratch()
        assert sparseinfer.scratch_bytes() == 0
        assert all(map(torch.equal, pool.map(layer, [x] * 6), expected))


def test_scratch_is_given_back_while_threads_work() -> None:
    layer = SparseLSTM.from_dense(nn.LSTM(16, 32))
    x = torch.randn(10, 40, 16)
    expected = layer(x)[0]

    def work(_: int) -> bool:
        sparseinfer.release_scratch()
        return torch.equal(layer(x)[0], expected)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(60)))


TRANSPOSED = [
    nn.ConvTranspose1d(4, 6, 16, stride=8, padding=4),
    nn.ConvTranspose1d(4, 8, 5, stride=3, padding=2, output_padding=2, groups=4, bias=False),
    nn.ConvTranspose1d(4, 6, 3, stride=2, dilation=3),
    nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
    nn.ConvTranspose2d(4, 6, 3, stride=(3, 2), padding=1, output_padding=(2, 1), groups=2),
    nn.ConvTranspose2d(4, 6, 2, stride=5),
]


@pytest.mark.parametrize("dense", TRANSPOSED, ids=repr)
def test_slabs_of_a_transposed_convolution_give_the_same_bits(
    dense: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        dense.weight.copy_(sparse_weight(dense.weight.shape, 0.5))
    sparse = SparseConvTranspose1d if dense.weight.dim() == 3 else SparseConvTranspose2d
    layer = sparse.from_dense(dense)
    x = torch.randn(3, 4, *(23, 17)[: dense.weight.dim() - 2])
    with torch.no_grad():
        whole = layer(x)
        for floats in (1, 100, 1000, 5000):
            monkeypatch.setattr(transposed, "_WHOLE_FLOATS", 0)
            monkeypatch.setattr(slabs, "SLAB_FLOATS", floats)
            assert torch.equal(layer(x), whole)


def test_slabs_keep_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseConvTranspose1d.from_dense(nn.ConvTranspose1d(4, 6, 4, stride=2))
    monkeypatch.setattr(transposed, "_WHOLE_FLOATS", 0)
    x = torch.randn(1, 4, 30, requires_grad=True)
    y: Tensor = layer(x)
    y.sum().backward()
    expected = torch.autograd.grad(
        functional.conv_transpose1d(x, layer.weight, layer.bias, stride=2).sum(), x
    )
    torch.testing.assert_close(x.grad, expected[0])
