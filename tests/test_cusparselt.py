"""2:4 through torch's cuSPARSELt: its reasons, and what torch's functions are asked for.

The library needs a GPU. In its place stand functions that multiply in torch and check what the
library demands of shapes and types; what they cannot tell is whether it agrees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor

from sparseinfer import formats, pack
from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels import cusparselt, dispatch, registry
from sparseinfer.kernels.cusparselt import cusparselt_linear, limits, search
from sparseinfer.kernels.triton.nm_planes import NmMeta


class Library:
    """torch's three functions, by dense products; `calls` has the name and algorithm of each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def compress(self, dense: Tensor) -> Tensor:
        assert dense.is_contiguous() and dense.dtype in (torch.float16, torch.bfloat16)
        assert not (dense.view(-1, 4) != 0).sum(1).gt(2).any()
        self.calls.append(("compress", 0))
        return dense.clone()

    def multiply(
        self, weight: Tensor, x: Tensor, bias: Tensor | None = None, alpha: None = None,
        out_dtype: None = None, transpose_result: bool = False, alg_id: int = 0,
    ) -> Tensor:  # fmt: skip
        assert x.dim() == 2 and x.shape[1] % 8 == 0 and x.dtype == weight.dtype
        assert x.is_contiguous() or x.t().is_contiguous()
        self.calls.append(("multiply", alg_id))
        y = weight.float() @ x.float()
        if bias is not None:
            y += bias.float()[:, None]
        return (y.t().contiguous() if transpose_result else y).to(x.dtype)

    def search(self, weight: Tensor, x: Tensor, **options: Any) -> int:
        self.multiply(weight, x, **options)
        self.calls[-1] = "search", 0
        return 7


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(torch, "_cslt_compress", made.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", made.multiply)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", made.search)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    monkeypatch.setattr(cusparselt, "cuda_reasons", lambda device: [])
    monkeypatch.setattr(cusparselt, "_ALGORITHMS", {})
    return made


def packed_nm(dtype: torch.dtype, n: int = 2) -> tuple[Tensor, Tensor, NmMeta]:
    weight = sparse_weight((32, 64), 0.9, integers=True, nm=(n, 4)).to(dtype)
    packed = pack(weight, "nm", n=n)
    return weight, packed, NmMeta.from_info(formats.info(packed))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_the_layer(library: Library, dtype: torch.dtype, n: int) -> None:
    weight, packed, meta = packed_nm(dtype, n)
    bias = torch.randint(-3, 4, (32,)).to(dtype)
    for shape in ((256, 64), (257, 64), (2, 131, 64)):
        x = torch.randint(-1, 2, shape).to(dtype)
        for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
            expected = torch.relu(given.float() @ weight.float().t() + bias.float()).to(dtype)
            y = cusparselt_linear(given, packed, bias, 32, "relu", meta=meta)
            assert torch.equal(y, expected) and y.is_contiguous()
    y = cusparselt_linear(x, packed, None, 32, meta=meta)
    assert torch.equal(y, (x.float() @ weight.float().t()).to(dtype))
    assert library.calls.count(("compress", 0)) == 1, "the weight is made once"


def test_the_algorithm_is_searched_once_and_never_in_a_call(library: Library) -> None:
    _, packed, meta = packed_nm(torch.bfloat16)
    x, bias = torch.ones(300, 64).bfloat16(), torch.zeros(32).bfloat16()
    cusparselt_linear(x, packed, bias, 32, meta=meta)
    assert search(packed, meta, 300, biased=True) == search(packed, meta, 512, biased=True) == 7
    cusparselt_linear(x, packed, bias, 32, meta=meta)
    cusparselt_linear(x[:256], packed, bias, 32, meta=meta)
    cusparselt_linear(x, packed, None, 32, meta=meta)
    assert library.calls == [
        ("compress", 0), ("multiply", 0), ("search", 0), ("multiply", 7),
        ("multiply", 0),  # 256 is another power of two
        ("multiply", 0),  # and no bias another problem: the default algorithm
    ]  # fmt: skip


def test_layers_of_one_shape_share_an_algorithm(library: Library) -> None:
    _, packed, meta = packed_nm(torch.bfloat16)
    search(packed, meta, 300)
    other, other_meta = packed.clone(), NmMeta.from_info(formats.info(packed))
    assert search(other, other_meta, 300) == 7
    cusparselt_linear(torch.ones(300, 64).bfloat16(), other, None, 32, meta=other_meta)
    _, halves, halves_meta = packed_nm(torch.float16)
    search(halves, halves_meta, 300)
    assert library.calls == [
        ("compress", 0), ("search", 0),
        ("compress", 0), ("multiply", 7),
        ("compress", 0), ("search", 0),
    ]  # fmt: skip


def test_a_conversion_searches_for_the_row_that_will_run(library: Library) -> None:
    _, packed, _ = packed_nm(torch.bfloat16)
    for tokens in (255, 300, 512):
        dispatch.search_algorithm(packed, "linear", torch.bfloat16, tokens, biased=False)
    dispatch.search_algorithm(packed, "linear", torch.float32, 300, biased=False)
    dispatch.search_algorithm(packed, "conv", torch.bfloat16, 300, biased=False)
    assert library.calls == [("compress", 0), ("search", 0)]
    row = next(row for row in registry.TRITON_ROWS if row.name == "nm.linear.cusparselt")
    x = torch.ones(300, 64).bfloat16()
    assert row.meta is not None
    cusparselt_linear(x, packed, None, 32, meta=open_packed(packed).meta(row.meta))
    assert library.calls[2:] == [("multiply", 7)], "what was found is what calls use"


def test_reasons(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    fits = registry.Problem("linear", "nm", cuda, torch.float16, M=32, K=64, N=256)
    assert limits(fits) == []
    for changed, text in (
        ({"n": 3}, "expected 1:4 or 2:4 weights, got 3:4"),
        ({"n": 4, "m": 8}, "got 4:8"),
        ({"M": 33}, "multiples of 16, got 33x64"),
        ({"K": 65}, "multiples of 16, got 32x65"),
        ({"N": 255}, "expected at least 256 tokens, got 255"),
    ):
        (reason,) = limits(replace(fits, **changed))
        assert text in reason
    assert "got float32" in limits(replace(fits, dtype=torch.float32))[0]
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    (reason,) = limits(fits)
    assert reason.startswith("expected a torch with cuSPARSELt, got torch ")
    _, packed, meta = packed_nm(torch.float16)
    with pytest.raises(RuntimeError, match=r"nm.linear.cusparselt cannot run .* with cuSPARSELt"):
        cusparselt_linear(torch.ones(256, 64).half(), packed, None, 32, meta=meta)


def test_row() -> None:
    (row,) = [row for row in registry.rows() if row.name == "nm.linear.cusparselt"]
    problem = registry.Problem("linear", "nm", dtype=torch.float16, M=32, K=64, N=256)
    assert row.unsupported_reasons(problem)[0].startswith("expected a CUDA device, got cpu")
    if not torch.cuda.is_available():
        assert row.machine_reasons()


@pytest.mark.skipif(
    not torch.cuda.is_available() or not torch.backends.cusparselt.is_available(),
    reason="no CUDA device with cuSPARSELt; it would compare the library with exact products",
)
def test_on_gpu() -> None:
    weight, packed, meta = packed_nm(torch.bfloat16)
    packed, x = packed.cuda(), torch.randint(-1, 2, (300, 64)).bfloat16().cuda()
    expected = (x.double().cpu() @ weight.double().t()).bfloat16()
    for _ in range(2):
        assert torch.equal(cusparselt_linear(x, packed, None, 32, meta=meta).cpu(), expected)
        search(packed, meta, 300)
