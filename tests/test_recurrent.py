"""Sparse LSTM, GRU and RNN do what torch's do: results, packed sequences, state, gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import sparseinfer
from sparseinfer import SparseGRU, SparseLSTM, SparseRNN, convert_to_sparse, report
from sparseinfer.layers.recurrent import SparseRecurrent

PAIRS: list[tuple[type[nn.RNNBase], type[SparseRecurrent], dict[str, Any]]] = [
    (nn.LSTM, SparseLSTM, {}),
    (nn.GRU, SparseGRU, {}),
    (nn.RNN, SparseRNN, {}),
    (nn.RNN, SparseRNN, {"nonlinearity": "relu"}),
]
pairs = pytest.mark.parametrize("dense_type, sparse_type, extra", PAIRS)


def _sparse(dense: nn.RNNBase, density: float = 0.4) -> nn.RNNBase:
    for name, parameter in dense.named_parameters():
        if name.startswith("weight"):
            parameter.data *= torch.rand_like(parameter) < density
    return dense.eval()


def _tensors(result: Any) -> list[Tensor]:
    y, states = result
    y = [y.data, y.batch_sizes] if isinstance(y, PackedSequence) else [y]
    return [*y, *(states if isinstance(states, tuple) else (states,))]


def _same(found: Any, expected: Any) -> None:
    for a, b in zip(_tensors(found), _tensors(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pairs
@hypothesis.given(data=st.data())
def test_results_are_those_of_torch(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any], data: st.DataObject
) -> None:
    layers, both = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    dense = dense_type(
        data.draw(st.integers(1, 9)), data.draw(st.integers(1, 19)), layers,
        bias=data.draw(st.booleans()), batch_first=data.draw(st.booleans()), bidirectional=both,
        **extra,
    )  # fmt: skip
    sparse = sparse_type.from_dense(_sparse(dense))
    steps, batch = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5))
    count, width = layers * (2 if both else 1), dense.hidden_size
    kind = data.draw(st.sampled_from(("batched", "lone", "packed", "sorted")))
    if kind == "lone":
        x: Any = torch.randn(steps, dense.input_size)
        shape: tuple[int, ...] = (count, width)
    else:
        shape = (count, batch, width)
        size = (batch, steps) if dense.batch_first else (steps, batch)
        x = torch.randn(*size, dense.input_size)
    if kind in ("packed", "sorted"):
        lengths = [data.draw(st.integers(1, steps)) for _ in range(batch)]
        if kind == "sorted":
            lengths.sort(reverse=True)
        parts = [torch.randn(length, dense.input_size) for length in lengths]
        x = pack_sequence(parts, enforce_sorted=kind == "sorted")
    hx: Any = None
    if data.draw(st.booleans()):
        hx = torch.randn(shape)
        if dense_type is nn.LSTM:
            hx = (hx, torch.randn(shape))
    with torch.no_grad():
        _same(sparse(x, hx), dense(x, hx))


@pairs
def test_gradients_are_those_of_torch(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    dense = _sparse(dense_type(5, 7, 2, bidirectional=True, dropout=0.5, **extra))
    sparse = sparse_type.from_dense(dense)
    x, h = torch.randn(4, 3, 5), torch.randn(4, 3, 7)
    found = []
    for layer in (sparse, dense):
        inputs = [x.clone().requires_grad_(), h.clone().requires_grad_()]
        hx = (inputs[1], inputs[1] * 2) if dense_type is nn.LSTM else inputs[1]
        y, states = layer(inputs[0], hx)
        last = states[1] if dense_type is nn.LSTM else states
        (y.square().sum() + last.sum()).backward()
        found.append([*(own.grad for own in inputs), layer.bias_ih_l1_reverse.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    # Dropout between the layers, in training mode: torch's own layer runs, from the same seed.
    outputs = []
    for layer in (sparse.train(), dense.train()):
        torch.manual_seed(3)
        outputs.append(layer(x)[0])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_state_copies_and_dense_weights() -> None:
    dense = _sparse(nn.LSTM(6, 8, 2))
    sparse = SparseLSTM.from_dense(dense)
    x = torch.randn(5, 2, 6)
    with torch.no_grad():
        expected = sparse(x)
        for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
            _same(other(x), expected)
        # Another instance takes the state, and torch's own state with another non-zero count.
        fresh = SparseLSTM.from_dense(_sparse(nn.LSTM(6, 8, 2), 0.9))
        fresh.load_state_dict(sparse.state_dict())
        _same(fresh(x), expected)
        again = SparseLSTM.from_dense(nn.LSTM(6, 8, 2).eval())
        again.load_state_dict(dense.state_dict())
        _same(again(x), expected)
        back = sparse.to_dense()
        assert repr(back) == repr(dense) == f"LSTM({sparse.extra_repr()})"
        for name, parameter in dense.named_parameters():
            assert torch.equal(back.get_parameter(name), parameter)
            assert torch.equal(getattr(sparse, name) + 0, parameter)
    assert sorted(key for key in sparse.state_dict() if "l0" in key) == [
        "hh_l0.bias", "hh_l0.packed", "ih_l0.bias", "ih_l0.packed",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="weight_ih_l7"):
        sparse.weight_ih_l7  # noqa: B018
    bad = dict(sparse.state_dict())
    bad["hh_l0.packed"] = bad["hh_l0.packed"].clone()
    bad["hh_l0.packed"][200] ^= 1
    with pytest.raises(RuntimeError, match=r"hh_l0\.packed"):
        fresh.load_state_dict(bad)


def test_narrow_types_and_errors() -> None:
    sparse = SparseGRU.from_dense(nn.GRU(4, 8))
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        y, h = copy.deepcopy(sparse).bfloat16()(x.bfloat16())
        assert y.dtype is h.dtype is torch.bfloat16
        torch.testing.assert_close(y.float(), sparse(x)[0], rtol=0.05, atol=0.05)
        with pytest.raises(RuntimeError, match=r"expected a float32 input, got torch\.float64"):
            sparse(x.double())
        with pytest.raises(RuntimeError, match=r"must be equal to input_size\. Expected 4, got 5"):
            sparse(torch.zeros(3, 2, 5))
        with pytest.raises(ValueError, match="2D or 3D, got 4D"):
            sparse(torch.zeros(1, 3, 2, 4))
        with pytest.raises(RuntimeError, match="Expected hidden size"):
            sparse(x, torch.zeros(1, 3, 8))
        assert sparse(torch.zeros(3, 0, 4))[0].shape == (3, 0, 8)
        with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
            sparse(torch.zeros(0, 2, 4))
    with pytest.raises(TypeError, match=r"expected an nn\.GRU, got LSTM"):
        SparseGRU.from_dense(nn.LSTM(4, 8))


def test_the_operator_refuses_what_does_not_fit() -> None:
    packed = sparseinfer.pack(torch.zeros(8, 2))
    gates, h = torch.zeros(5, 3, 8), torch.zeros(3, 2)

    def call(gates: Tensor = gates, packed: Tensor = packed, **changed: Any) -> Any:
        given: dict[str, Any] = {"h": h, "c": h, "batch_sizes": None, "cell": "lstm", **changed}
        return torch.ops.sparseinfer.recurrent(
            gates, packed, None, given["h"], given["c"], given["batch_sizes"], given["cell"],
            False, False, 1,
        )  # fmt: skip

    assert call()[0].shape == (5, 3, 2)
    torch.library.opcheck(
        torch.ops.sparseinfer.recurrent.default,
        (gates, packed, None, h, h, None, "lstm", False, False, 1),
        test_utils=("test_schema", "test_faketensor"),
    )
    with pytest.raises(ValueError, match="cell"):
        call(cell="lstm2")
    with pytest.raises(RuntimeError, match="expected c for an LSTM alone"):
        call(cell="gru")
    with pytest.raises(RuntimeError, match="expected states of shape"):
        call(c=torch.zeros(2, 2))
    with pytest.raises(RuntimeError, match="expected gates of 3 dimensions, the last of 8"):
        call(torch.zeros(5, 3, 6))
    with pytest.raises(RuntimeError, match="expected states of 4 sequences"):
        call(torch.zeros(5, 4, 8))
    with pytest.raises(RuntimeError, match="float64"):
        call(gates.double())
    with pytest.raises(RuntimeError, match=r"expected a packed weight of shape \[8, 2\]"):
        call(packed=sparseinfer.pack(torch.zeros(8, 3)))
    with pytest.raises(ValueError, match="corrupt"):
        call(packed=torch.zeros(512, dtype=torch.uint8))
    rows = torch.zeros(4, 8)
    for sizes, why in (
        ([3, 2], "add up to the 4 rows"),
        ([1, 3], "batch_sizes"),
        ([4], "from 1 to 3"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=why):
            call(rows, batch_sizes=torch.tensor(sizes))
    with pytest.raises(RuntimeError, match="int64 vector"):
        call(rows, batch_sizes=torch.tensor([3.0, 1.0]))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(16, 24, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def _pruned() -> Tagger:
    model = Tagger().eval()
    _sparse(model.rnn, 0.2)
    return model


def test_conversion_report_and_files(tmp_path: Any) -> None:
    model, x = _pruned(), torch.randn(2, 7, 16)
    prune.l1_unstructured(model.rnn, "weight_hh_l0", amount=0.5)
    sparse = convert_to_sparse(model, min_speedup=0)
    assert isinstance(sparse.rnn, SparseGRU)
    layer = next(layer for layer in report(sparse).layers if layer.name == "rnn")
    assert (layer.kind, layer.shape, layer.format) == ("gru", [144, 112], "panel")
    assert layer.nnz == sparse.rnn.nnz
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), model(x), rtol=1e-5, atol=1e-5)
        measured = convert_to_sparse(model, example_inputs=x, verify=False)
        torch.testing.assert_close(measured(x), model(x), rtol=1e-5, atol=1e-5)
        assert next(r for r in report(measured).layers if r.name == "rnn").timing == "measured"
        # A fresh dense model takes the converted state, and the sparse file.
        loaded = sparseinfer.load_converted(Tagger().eval(), sparse.state_dict())
        assert isinstance(loaded.rnn, SparseGRU)
        torch.testing.assert_close(loaded(x), sparse(x))
        sparseinfer.save_sparse(sparse, tmp_path / "tagger.safetensors")
        dense = sparseinfer.load_sparse_into(Tagger().eval(), tmp_path / "tagger.safetensors")
        torch.testing.assert_close(dense(x), sparse(x), rtol=1e-5, atol=1e-5)


@pairs
def test_every_kind_converts_and_comes_back(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    dense = _sparse(dense_type(4, 8, bidirectional=True, **extra))
    sparse = convert_to_sparse(nn.Sequential(dense), min_speedup=0)[0]
    assert type(sparse) is sparse_type
    back, x = sparse.to_dense(), torch.randn(5, 2, 4)
    assert repr(back) == repr(dense)
    with torch.no_grad():
        _same(back(x), dense(x))
        _same(sparse(x), dense(x))


def test_autocast_and_second_derivatives() -> None:
    sparse, x = SparseLSTM.from_dense(_sparse(nn.LSTM(4, 8))), torch.randn(5, 2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            y, (h, c) = sparse(x)
        assert y.dtype is h.dtype is c.dtype is torch.bfloat16
        assert sparse(x.requires_grad_())[0].requires_grad
    torch.testing.assert_close(y.float(), sparse(x)[0].detach(), rtol=0.05, atol=0.05)
    with pytest.raises(RuntimeError, match=r"create_graph=True; try layer\.to_dense"):
        torch.autograd.grad(sparse(x)[0].sum(), x, create_graph=True)


def test_states_that_do_not_fit() -> None:
    gru, lstm = SparseGRU.from_dense(nn.GRU(4, 8)), SparseLSTM.from_dense(nn.LSTM(4, 8))
    x, h = torch.randn(5, 2, 4), torch.zeros(1, 2, 8)
    with torch.no_grad():
        wrong: list[tuple[nn.Module, Any]] = [(gru, (h, h)), (lstm, h), (lstm, (h, h, h))]
        for layer, hx in wrong:
            with pytest.raises(TypeError, match="expected hx to be"):
                layer(x, hx)
        with pytest.raises(RuntimeError, match="on the same device"):
            gru(x, h.to("meta"))


def test_what_stays_dense() -> None:
    model = nn.ModuleDict({"own": nn.GRU(4, 8)})
    model.tied = nn.GRU(4, 8)
    model.tied.weight_hh_l0 = model["own"].weight_hh_l0
    for parameter in model.parameters():
        parameter.data.flatten()[::2] = 0
    reasons = {layer.name: layer.reason for layer in report(model).layers}
    assert "same Parameter" in reasons["own"] and "same Parameter" in reasons["tied"]


def test_compiled() -> None:
    sparse = SparseLSTM.from_dense(_sparse(nn.LSTM(4, 8)))
    x = torch.randn(5, 2, 4)
    with torch.no_grad():
        compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True)
        _same(compiled(x), sparse(x))
