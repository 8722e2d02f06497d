"""Layers that multiply in bfloat16: the bound, drop-in shapes and types, state, compilers."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn

import sparseinfer
from sparseinfer import (
    SparseLinear,
    convert_to_sparse,
    formats,
    load_converted,
    pack,
    report,
    to_dense,
    unpack,
)
from sparseinfer.convert import narrow
from sparseinfer.kernels import registry
from sparseinfer.layers.kinds import kind_of
from sparseinfer.ops.run_linear import linear_cpu
from sparseinfer.quantize import sqnr_db

WORDS = {"weights": "bfloat16", "activations": "bfloat16"}

LAYERS = [
    (nn.Linear(70, 33), (5, 70)),
    (nn.Linear(64, 16, bias=False), (2, 3, 64)),
    (nn.Linear(31, 8), (31,)),
    (nn.Conv1d(4, 8, 5, stride=3, padding=4, groups=2), (2, 4, 15)),
    (nn.Conv2d(6, 9, 3, padding=1), (2, 6, 9, 11)),
    (nn.Conv2d(4, 8, 3, padding=2, groups=4, padding_mode="replicate"), (1, 4, 9, 9)),
    (nn.Conv2d(16, 24, 1), (16, 7, 7)),
    (nn.ConvTranspose1d(6, 4, 4, stride=2), (2, 6, 9)),
    (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1), (1, 6, 5, 7)),
]


def _sparse(dense: nn.Module, density: float = 0.4) -> Any:
    dense.weight.data = sparse_weight(dense.weight.shape, density)  # type: ignore[arg-type]
    kind = kind_of(dense)
    assert kind is not None
    return kind.sparse.from_dense(dense, **WORDS)


def _check(y: Tensor, x: Tensor, dense: Any) -> None:
    """Assert that y is what float64 gives of rounded operands, within (K + 2) 2^-23 (|W| |x|)."""
    exact, size = copy.deepcopy(dense).double(), copy.deepcopy(dense).double()
    rounded = dense.weight.detach().bfloat16().double()
    exact.weight.data, size.weight.data = rounded, rounded.abs()
    if dense.bias is not None:
        size.bias.data = size.bias.data.abs()
    operands = x.detach().bfloat16().double()
    expected, absolute = exact(operands), size(operands.abs())
    bound = (rounded[0].numel() * 4 + 2) * 2.0**-23 * absolute + 1e-30
    if y.dtype is torch.bfloat16:
        bound = bound + 2.0**-8 * (expected.abs() + bound)
    assert y.shape == expected.shape
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize(("dense", "shape"), LAYERS, ids=str)
def test_layers_round_operands_and_nothing_else(dense: Any, shape: tuple[int, ...]) -> None:
    sparse, x = _sparse(dense), torch.randn(shape)
    assert sparse.handle.activations == "bfloat16"
    with torch.no_grad():
        _check(sparse(x), x, dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_runs_every_row(dtype: torch.dtype) -> None:
    dense, x = nn.Linear(70, 33, bias=False), torch.randn(5, 70).to(dtype)
    sparse = _sparse(dense)
    rows = [row for row in registry.rows() if registry.PAIRS in row.weight_types]
    ran = [
        linear_cpu(x, sparse.packed, None, 33, "none", 1, row.native_id)
        for row in rows
        if row.op == "linear" and not row.machine_reasons()
    ]
    assert ran
    for y in ran:
        _check(y, x, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dense", "shape"), LAYERS[:7], ids=str)
def test_outputs_have_the_inputs_type(
    dense: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    sparse, x = _sparse(dense), torch.randn(shape).to(dtype)
    moved = copy.deepcopy(sparse).to(dtype)
    with torch.no_grad():
        y = moved(x)
        assert y.dtype is dtype and y.shape == dense(x.float()).shape
        if dtype is torch.bfloat16:
            whole = copy.deepcopy(dense)
            if whole.bias is not None:
                whole.bias.data = whole.bias.data.to(dtype).float()
            _check(y, x, whole)
    empty = x[:0] if x.dim() > 1 + (not isinstance(dense, nn.Linear)) * 2 else None
    if empty is not None:
        assert moved(empty).shape[0] == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sparse(torch.randn(shape)).dtype is torch.bfloat16


def test_inputs_that_are_not_contiguous_and_small_integers_are_exact() -> None:
    dense = nn.Linear(24, 10)
    sparse = _sparse(dense)
    x = torch.randn(24, 7).t()
    _check(sparse(x), x, dense)
    dense.weight.data = sparse_weight((10, 24), 0.5, integers=True)
    dense.bias.data.zero_()
    sparse, x = SparseLinear.from_dense(dense, **WORDS), torch.randint(-8, 9, (40, 24)).float()
    assert torch.equal(sparse(x), x @ dense.weight.T)
    assert torch.equal(copy.deepcopy(sparse).bfloat16()(x.bfloat16()).float(), sparse(x))


def test_nan_and_inf_reach_the_outputs_of_kept_weights() -> None:
    dense = nn.Linear(4, 2, bias=False)
    dense.weight.data = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    sparse = SparseLinear.from_dense(dense, **WORDS)
    y = sparse(torch.tensor([[1.0, float("nan"), float("inf"), 0.0]]))
    assert y[0, 0] == float("inf") and y[0, 1].isnan()


# ---- words -------------------------------------------------------------------------------------


def test_the_words_of_pack() -> None:
    weight = sparse_weight((12, 40), 0.4)
    packed = pack(weight, **WORDS)
    assert formats.info(packed)["params"]["g"] == 2
    assert torch.equal(packed, pack(weight, weights="bfloat16", g=2))
    assert torch.equal(unpack(packed), weight.bfloat16().float())
    for bad in ({"g": 1}, {"format": "csr"}, {"format": "nm", "n": 4}):
        with pytest.raises(ValueError, match="expected the panel format with g=2"):
            pack(weight, **WORDS, **bad)
    with pytest.raises(ValueError, match="got float32 and bfloat16"):
        pack(weight, activations="bfloat16")
    with pytest.raises(ValueError, match="expected activations of"):
        pack(weight, weights="bfloat16", activations="half")


@pytest.mark.parametrize("dense", [nn.GRUCell(4, 8), nn.LSTM(4, 8)], ids=str)
def test_recurrent_layers_have_no_kernel(dense: nn.Module) -> None:
    name = f"Sparse{type(dense).__name__}"
    with pytest.raises(ValueError, match=rf"for {name}, got 'bfloat16', which it has no kernel"):
        getattr(sparseinfer, name).from_dense(dense, **WORDS)


def test_calls_that_do_not_fit() -> None:
    sparse = _sparse(nn.Linear(20, 8))
    with pytest.raises(RuntimeError, match="last dimension is 20"):
        sparse(torch.randn(3, 21))
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        sparse(torch.randn(3, 20).bfloat16())  # beside a float32 bias
    conv = _sparse(nn.Conv2d(4, 6, 3))
    with pytest.raises(RuntimeError, match="should be the same"):
        conv(torch.randn(1, 4, 8, 8).bfloat16())
    with pytest.raises(RuntimeError, match="channels"):
        conv.bfloat16()(torch.randn(1, 5, 8, 8).bfloat16())


# ---- state -------------------------------------------------------------------------------------


def test_state_copies_and_pickles() -> None:
    sparse, x = nn.Sequential(_sparse(nn.Linear(24, 10))), torch.randn(3, 24)
    expected, buffer = sparse(x), io.BytesIO()
    torch.save(sparse.state_dict(), buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=True)
    for other in (
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)),
        load_converted(nn.Sequential(nn.Linear(24, 10)), read),
        load_converted(nn.Sequential(nn.Linear(24, 10)), read, assign=True),
    ):
        assert torch.equal(other(x), expected) and other[0].handle.is_pairs


def test_dense_weights_are_packed_as_the_layer_is() -> None:
    dense, other = nn.Linear(24, 10), nn.Linear(24, 10)
    sparse = _sparse(dense)
    sparse.load_state_dict(other.state_dict())
    x = torch.randn(3, 24)
    assert sparse.handle.is_pairs
    _check(sparse(x), x, other)
    sparse.weight = torch.eye(10, 24)
    assert sparse.handle.is_pairs and sparse.nnz == 10
    wide = SparseLinear.from_dense(dense)
    for state, pairs in ((wide.state_dict(), False), (_sparse(dense).state_dict(), True)):
        sparse.load_state_dict(state)
        assert sparse.handle.is_pairs == pairs


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_files_hold_the_rounded_weights(name: str, tmp_path: Path) -> None:
    model, x = nn.Sequential(_sparse(nn.Linear(64, 32), 0.2)), torch.randn(3, 64)
    saved = sparseinfer.save_sparse(model, tmp_path / name, exact_layout=True)
    assert torch.equal(
        sparseinfer.load_sparse(saved.path)["0.weight"].float(), model[0].dense_weight()
    )
    dense = sparseinfer.load_sparse_into(nn.Sequential(nn.Linear(64, 32)), saved.path)
    again = SparseLinear.from_dense(dense[0], **WORDS)
    assert torch.equal(again(x), model(x))


# ---- torch -------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_rounded_weight() -> None:
    sparse = _sparse(nn.Linear(12, 6))
    x = torch.randn(4, 12, requires_grad=True)
    sparse(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(4, 6) @ sparse.dense_weight())
    assert torch.equal(sparse.bias.grad, torch.full((6,), 4.0))
    assert torch.equal(to_dense(nn.Sequential(sparse))[0].weight, sparse.dense_weight())


@pytest.mark.parametrize(("dense", "shape"), [LAYERS[0], LAYERS[4]], ids=str)
def test_exported_programs_round_too(dense: nn.Module, shape: tuple[int, ...]) -> None:
    sparse, x = _sparse(copy.deepcopy(dense)), torch.randn(shape)
    program = torch.export.export(nn.Sequential(sparse), (x,))
    assert torch.equal(program.module()(x), sparse(x))


@pytest.mark.slow
def test_compiled() -> None:
    model = nn.Sequential(_sparse(nn.Linear(24, 10)), nn.ReLU(), _sparse(nn.Linear(10, 4)))
    x = torch.randn(5, 24)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_repr_names_the_types() -> None:
    assert "weights=bfloat16, activations=bfloat16" in repr(_sparse(nn.Conv2d(4, 6, 3)))
    assert "activations" not in repr(SparseLinear.from_dense(nn.Linear(4, 4), weights="bfloat16"))


# ---- conversion --------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {**WORDS, "min_speedup": 0, "verify": False, "cache": False}


def _network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 10),
    )  # fmt: skip
    for place in (0, 2, 5):
        model[place].weight.data = sparse_weight(model[place].weight.shape, 0.3)  # type: ignore
        model[place].weight.data /= model[place].weight[0].numel() ** 0.5  # type: ignore
    return model.eval()


_ISA = next(isa for isa in sparseinfer.native.isas() if isa["name"] == narrow.BF16_ISA)

bf16_products = pytest.mark.skipif(not _ISA["supported"], reason=_ISA["reason"])


@bf16_products
@pytest.mark.parametrize("examples", [True, False])
def test_networks(examples: bool) -> None:
    model, x = _network(), torch.randn(4, 3, 6, 6)
    sparse = convert_to_sparse(model, example_inputs=x if examples else None, **OPTIONS)
    assert sqnr_db(model(x), sparse(x)) > 35
    found = report(sparse)
    for layer in found.layers:
        assert (layer.weights, layer.activations, layer.wider) == ("bfloat16", "bfloat16", "")
        assert layer.packed_bytes < layer.dense_bytes
        if examples:
            assert (layer.sqnr_db or 0) > 40 or layer.kind == "convtranspose2d"
        else:
            assert "no cost model for bfloat16" in layer.reason
    assert "panel bfloat16 x bfloat16" in str(found)
    assert torch.equal(load_converted(model, sparse.state_dict())(x), sparse(x))
    again = report(convert_to_sparse(sparse, min_speedup=0))
    assert {layer.activations for layer in again.layers} == {"bfloat16"}


@bf16_products
def test_models_in_bfloat16() -> None:
    model = _network().bfloat16()
    x = torch.randn(4, 3, 6, 6).bfloat16()
    sparse = convert_to_sparse(model, example_inputs=x, **OPTIONS)
    assert {layer.activations for layer in report(sparse).layers} == {"bfloat16"}
    assert sparse(x).dtype is torch.bfloat16
    assert sqnr_db(model(x).float(), sparse(x).float()) > 25


def test_targets_without_products_compute_in_float32() -> None:
    model, x = _network(), torch.randn(4, 3, 6, 6)
    sparse = convert_to_sparse(model, target="x86-64-avx512", **OPTIONS)
    for layer in report(sparse).layers:
        assert (layer.weights, layer.activations) == ("bfloat16", "float32")
        assert layer.wider == (
            "x86-64-avx512 has no avx512_bf16, so the arithmetic is float32 with bfloat16 values"
        )
        assert f"not bfloat16 activations: {layer.wider}" in layer.reason
    assert sqnr_db(model(x), sparse(x)) > 35


def test_hosts_without_products_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    isas = [
        {**isa, "supported": False, "reason": "this CPU has none"}
        if isa["name"] == narrow.BF16_ISA
        else isa
        for isa in sparseinfer.native.isas()
    ]
    monkeypatch.setattr(narrow.native, "isas", lambda: isas)
    for layer in report(convert_to_sparse(_network(), **OPTIONS)).layers:
        assert (layer.weights, layer.activations) == ("bfloat16", "float32")
        assert "not bfloat16 activations: this CPU has none, so" in layer.reason


def test_recurrent_layers_keep_float32_arithmetic() -> None:
    model = nn.LSTM(16, 32)
    model.weight_hh_l0.data = sparse_weight((128, 32), 0.2)
    (layer,) = report(convert_to_sparse(model, **OPTIONS)).layers
    assert (layer.weights, layer.activations) == ("bfloat16", "float32")
    assert "there is no bfloat16 kernel for lstm, so the arithmetic is float32" in layer.reason


@bf16_products
def test_layers_with_too_much_error_keep_float32_arithmetic() -> None:
    asked = {**OPTIONS, "min_sqnr": 200.0}
    found = report(convert_to_sparse(_network(), example_inputs=torch.randn(2, 3, 6, 6), **asked))
    for layer in found.layers:
        if layer.sqnr_db is not None:
            assert layer.activations == "float32" and "less than the 200 dB asked" in layer.wider


def test_calibration_is_for_int8_alone() -> None:
    with pytest.raises(ValueError, match="expected no calibration for weights='bfloat16'"):
        convert_to_sparse(_network(), calibration=torch.randn(2, 3, 6, 6), **OPTIONS)
    with pytest.raises(ValueError, match="expected min_sqnr in decibels, got nan"):
        convert_to_sparse(_network(), **{**OPTIONS, "min_sqnr": float("nan")})
