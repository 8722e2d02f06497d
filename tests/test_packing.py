"""Packing in vectorised torch gives the native packer's bytes; torch's sparse weights are taken."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import check_linear, sparse_weight
from torch import nn
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

import sparseinfer
from sparseinfer import _C, formats, pack, unpack
from sparseinfer.formats import packed
from sparseinfer.formats.bsr import bsr_blob
from sparseinfer.formats.csr import csr_blob
from sparseinfer.formats.format import Format
from sparseinfer.formats.nm import nm_blob
from sparseinfer.formats.table import format_named
from sparseinfer.formats.torch_sparse import densified

SHAPES = [(1, 1), (1, 4), (3, 5), (8, 32), (17, 61), (6, 4, 3), (6, 3, 2, 5), (4, 2)]
PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (4, 4), (4, 8), (2, 8), (1, 32), (17, 32)]


def special(weight: torch.Tensor) -> torch.Tensor:
    """With -0.0, infinities, both kinds of NaN and values that a half rounds, among its weights."""
    patterns = [0x80000000, 0x7F800000, 0xFF800001, 0x7FC12345, 0x33000001, 0x3F801000, 0x3F803000]
    bits = torch.tensor([b - (b >> 31 << 32) for b in patterns], dtype=torch.int32)
    flat = weight.flatten().clone()
    at = flat.nonzero().flatten()[: len(bits)]
    flat[at] = bits[: len(at)].view(torch.float32)
    return flat.view(weight.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("value_type", ["float32", "float16", "bfloat16"])
def test_nm_bytes(shape: tuple[int, ...], value_type: str) -> None:
    torch.manual_seed(0)
    for n, m in PATTERNS:
        weight = special(sparse_weight(shape, 0.9, nm=(n, m)))
        made = nm_blob(weight, n=n, m=m, value_type=value_type)
        native = _C.pack("nm", weight.numpy(), n=n, m=m, value_type=value_type)
        assert made.numpy().tobytes() == native.tobytes(), (n, m)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 70000)], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_csr_bytes(shape: tuple[int, ...], density: float) -> None:
    torch.manual_seed(1)
    weight = special(sparse_weight(shape, density))
    assert csr_blob(weight).numpy().tobytes() == _C.pack("csr", weight.numpy()).tobytes()


def test_grouped_and_strided_weights() -> None:
    weight = sparse_weight((6, 2, 3), 0.5)
    for blob, format in ((csr_blob, "csr"), (nm_blob, "nm")):
        given = weight * (torch.arange(3) < 2)  # 2:4 in any alignment
        params: dict[str, Any] = {"n": 4} if format == "nm" else {}
        native = _C.pack(format, given.numpy(), 2, **params)
        assert blob(given, 2, **params).numpy().tobytes() == native.tobytes()
        apart = given.transpose(0, 1).contiguous().transpose(0, 1)
        assert blob(apart, 2, **params).numpy().tobytes() == native.tobytes()


@pytest.mark.parametrize(
    ("weight", "format", "groups", "params"),
    [
        (torch.ones(4), "csr", 1, {}),
        (torch.ones(4, 4), "csr", 3, {}),
        (torch.ones(0, 4), "csr", 1, {}),
        (torch.ones(4, 4), "csr", 2, {}),
        (torch.ones(4, 4), "nm", 1, {}),
        (torch.ones(4, 4), "nm", 1, {"n": 5}),
        (torch.ones(4, 4), "nm", 1, {"n": 1, "m": 33}),
        (torch.ones(4, 4), "nm", 1, {"n": 4, "value_type": "int8"}),
        (torch.full((4, 4), 1e6), "nm", 1, {"n": 4, "value_type": "float16"}),
    ],
)
def test_errors_are_the_native_packers(
    weight: torch.Tensor, format: str, groups: int, params: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"expected") as native:
        _C.pack(format, weight.numpy(), groups, **params)
    with pytest.raises(ValueError, match=r"expected") as made:
        {"csr": csr_blob, "nm": nm_blob}[format](weight, groups, **params)
    assert str(made.value) == str(native.value)


def test_violating_groups_are_counted_and_the_first_is_named() -> None:
    weight = torch.zeros(3, 10)
    weight[1, 4:7] = 1
    weight[2, :4] = 1
    text = (
        r"expected at most 2 non-zeros in every 4 consecutive columns, got 2 groups with more; the "
        r"first is row 1, columns 4-7 with 3; try the panel format"
    )
    with pytest.raises(ValueError, match=text):
        pack(weight, "nm")
    with pytest.raises(ValueError, match=text):
        nm_blob(weight)


def test_pack_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: a weight that says it is elsewhere is packed by torch, the rest natively."""

    class Elsewhere(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda", 0)

    called = []

    def noting(name: str) -> Format:
        row = format_named(name)
        if (blob := row.on_device) is None:
            return row
        return replace(row, on_device=lambda *a, **k: called.append(blob) or blob(*a, **k))

    monkeypatch.setattr(packed, "format_named", noting)
    monkeypatch.setattr(Elsewhere, "detach", lambda self: self.as_subclass(torch.Tensor))
    weight = sparse_weight((8, 16), 0.5, nm=(2, 4))
    for format in formats.FORMATS:
        blob = pack(weight.as_subclass(Elsewhere), format)
        assert torch.equal(blob, pack(weight, format))
    assert called == [csr_blob, nm_blob, bsr_blob]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device; it would pack weights on it"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pack_on_gpu(dtype: torch.dtype) -> None:
    weight = sparse_weight((64, 260), 0.9, nm=(2, 4)).to(dtype)
    for format in ("nm", "csr", "bsr"):
        packed = pack(weight.cuda(), format)
        assert packed.is_cuda and torch.equal(packed.cpu(), pack(weight, format))


def test_half_weights_in_csr() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        weight = sparse_weight((8, 32), 0.3).to(dtype)
        assert torch.equal(unpack(pack(weight, "csr")).to(dtype), weight)


# ---- torch's sparse tensors ----------------------------------------------------------------------


def semi_structured(weight: torch.Tensor) -> SparseSemiStructuredTensor:
    """As torch.sparse.to_sparse_semi_structured makes it on a GPU, in CUTLASS's layout."""
    kept, meta = sparse_semi_structured_from_dense_cutlass(weight)
    return SparseSemiStructuredTensorCUTLASS(weight.shape, kept, meta, None, None, None)


LAYOUTS = {
    "coo": lambda w: w.to_sparse(),
    "csr": lambda w: w.to_sparse_csr(),
    "csc": lambda w: w.to_sparse_csc(),
    "bsr": lambda w: w.to_sparse_bsr((4, 8)),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("layout", "format"),
    # A bsr buffer takes the blocks of a BSR tensor, see test_bsr.py.
    [pair for pair in itertools.product(LAYOUTS, formats.FORMATS) if pair != ("bsr", "bsr")],
)
def test_sparse_tensors_are_packed(layout: str, format: str) -> None:
    weight = sparse_weight((8, 32), 0.6, nm=(2, 4))
    assert torch.equal(pack(LAYOUTS[layout](weight), format), pack(weight, format))


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemi")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_semi_structured_tensors_are_packed(dtype: torch.dtype) -> None:
    weight = sparse_weight((32, 128), 1.0, nm=(2, 4)).to(dtype)
    weight[0, :2] = torch.tensor([float("nan"), 0.0])
    for format in ("nm", "csr"):
        assert torch.equal(pack(semi_structured(weight), format), pack(weight, format))


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemi")
def test_what_torch_cannot_read_is_said() -> None:
    unreadable = SparseSemiStructuredTensorCUTLASS(
        (8, 8), torch.zeros(8, 4).half(), None, None, None, None
    )
    with pytest.raises(ValueError, match="expected a sparse weight that torch can read on cpu"):
        densified(unreadable)


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of SparseSemi")
def test_layers_of_sparse_weights_are_converted() -> None:
    dense = nn.Linear(128, 64)
    with torch.no_grad():
        dense.weight.copy_(sparse_weight((64, 128), 1.0, nm=(1, 2)))  # float32's pattern
    x = torch.randn(3, 128)
    for make in (LAYOUTS["csr"], LAYOUTS["bsr"], semi_structured):
        layer = nn.Linear(128, 64)
        layer.bias = dense.bias
        layer.weight = nn.Parameter(make(dense.weight.detach()), requires_grad=False)
        model = nn.Sequential(layer)
        # In place: some versions of torch copy no sparse Parameter.
        sparseinfer.convert_to_sparse(model, min_speedup=0, formats="nm", inplace=True)
        assert isinstance(model[0], sparseinfer.SparseLinear), sparseinfer.report(model)
        assert torch.equal(unpack(model[0].packed), dense.weight)
        check_linear(model(x), x, dense.weight, dense.bias)
