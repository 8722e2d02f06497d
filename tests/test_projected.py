"""Sparse LSTM layers with a projected hidden state (`proj_size`) do what torch's do."""

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
from sparseinfer import SparseLSTM, convert_to_sparse, load_converted, report, to_dense
from sparseinfer.layers.projected import by_units, from_units
from sparseinfer.prune import Pruner

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


def _sparse(dense: nn.LSTM, density: float = 0.4) -> nn.LSTM:
    for name, parameter in dense.named_parameters():
        if name.startswith("weight"):
            parameter.data *= torch.rand_like(parameter) < density
    return dense.eval()


def _same(found: Any, expected: Any) -> None:
    (y, states), (other, others) = found, expected
    if isinstance(y, PackedSequence):
        assert torch.equal(y.batch_sizes, other.batch_sizes)
        y, other = y.data, other.data
    for a, b in zip((y, *states), (other, *others), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@hypothesis.given(data=st.data())
def test_results_are_those_of_torch(data: st.DataObject) -> None:
    layers, both = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    hidden = data.draw(st.integers(2, 19))
    dense = nn.LSTM(
        data.draw(st.integers(1, 9)), hidden, layers, bias=data.draw(st.booleans()),
        batch_first=data.draw(st.booleans()), bidirectional=both,
        proj_size=data.draw(st.integers(1, hidden - 1)),
    )  # fmt: skip
    sparse = SparseLSTM.from_dense(_sparse(dense))
    steps, batch = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5))
    kind = data.draw(st.sampled_from(("batched", "lone", "packed", "sorted")))
    if kind == "lone":
        x: Any = torch.randn(steps, dense.input_size)
    elif kind == "batched":
        size = (batch, steps) if dense.batch_first else (steps, batch)
        x = torch.randn(*size, dense.input_size)
    else:
        lengths = [data.draw(st.integers(1, steps)) for _ in range(batch)]
        lengths.sort(reverse=kind == "sorted")
        parts = [torch.randn(length, dense.input_size) for length in lengths]
        if kind == "sorted":
            parts.sort(key=len, reverse=True)
        x = pack_sequence(parts, enforce_sorted=kind == "sorted")
    hx: Any = None
    if data.draw(st.booleans()):
        own = (layers * (2 if both else 1), *(() if kind == "lone" else (batch,)))
        hx = torch.randn(*own, dense.proj_size), torch.randn(*own, dense.hidden_size)
    before = copy.deepcopy(hx)
    with torch.no_grad():
        _same(sparse(x, hx), dense(x, hx))
    if hx is not None:
        assert all(torch.equal(a, b) for a, b in zip(hx, before, strict=True))


def test_gradients_are_those_of_torch() -> None:
    dense = _sparse(nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3))
    sparse = SparseLSTM.from_dense(dense)
    x, h, c = torch.randn(4, 3, 5), torch.randn(4, 3, 3), torch.randn(4, 3, 7)
    found = []
    for layer in (sparse, dense):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, h, c)]
        y, states = layer(inputs[0], (inputs[1], inputs[2]))
        (y.square().sum() + states[1].sum()).backward()
        found.append([*(own.grad for own in inputs), layer.bias_hh_l1_reverse.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("units, width, outputs", [(8, 3, 5), (6, 4, 1), (2, 1, 1)])
def test_weights_by_units_come_back(units: int, width: int, outputs: int) -> None:
    shapes = {"ih": (4 * units, width), "hh": (4 * units, outputs), "hr": (outputs, units)}
    for part, shape in shapes.items():
        weight = torch.randn(shape)
        turned = by_units(part, weight, units)
        assert turned.shape == (units, weight.numel() // units)
        assert torch.equal(from_units(part, turned, weight.shape), weight)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_state_copies_and_dense_weights(options: dict[str, Any]) -> None:
    dense = _sparse(nn.LSTM(6, 8, proj_size=3, **options))
    sparse, x = SparseLSTM.from_dense(dense), torch.randn(5, 2, 6)
    assert "hr_l0.packed" in sparse.state_dict() and "hr_l0.bias" not in sparse.state_dict()
    with torch.no_grad():
        for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
            _same(other(x), sparse(x))
        fresh = SparseLSTM.from_dense(_sparse(nn.LSTM(6, 8, proj_size=3, **options), 0.9))
        for state in (sparse.state_dict(), dense.state_dict()):
            fresh.load_state_dict(state)
            _same(fresh(x), dense(x))
        back = sparse.to_dense()
        assert repr(back) == repr(dense) == f"LSTM({sparse.extra_repr()})"
        for name, parameter in dense.named_parameters():
            assert torch.equal(back.get_parameter(name), parameter)
            assert torch.equal(getattr(sparse, name) + 0, parameter)
    assert sparse.weight_shape == sparse.dense_weight().shape
    assert sparse.nnz == int(sparse.dense_weight().count_nonzero())


def test_states_that_do_not_fit() -> None:
    dense = nn.LSTM(4, 8, proj_size=3)
    sparse, x = SparseLSTM.from_dense(dense), torch.randn(5, 2, 4)
    h, c = torch.zeros(1, 2, 3), torch.zeros(1, 2, 8)
    for hx in ((c, c), (h, h)):
        with pytest.raises(RuntimeError) as expected:
            dense(x, hx)
        with pytest.raises(RuntimeError) as found:
            sparse(x, hx)
        assert str(found.value) == f"{expected.value}; try hx=None"


def test_narrow_types_autocast_and_the_compiler() -> None:
    sparse = SparseLSTM.from_dense(_sparse(nn.LSTM(4, 8, proj_size=3, bidirectional=True)))
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        expected = sparse(x)[0]
        narrow = copy.deepcopy(sparse).bfloat16()(x.bfloat16())[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = sparse(x)[0]
        for y in (narrow, cast):
            assert y.dtype is torch.bfloat16
            torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
        compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True)
        _same(compiled(x), sparse(x))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True, proj_size=10)
        self.out = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def test_conversion_report_and_files(tmp_path: Any) -> None:
    model, x = Tagger().eval(), torch.randn(2, 3, 16)
    Pruner(model, scope="layer").prune(0.7)
    prune.l1_unstructured(model.rnn, "weight_hr_l1", amount=0.9)
    sparse = convert_to_sparse(model, min_speedup=0)
    assert isinstance(sparse.rnn, SparseLSTM)
    layer = next(layer for layer in report(sparse).layers if layer.name == "rnn")
    # By direction 24 units: 4 gates of the inputs and of 10 outputs, and a column of W_hr.
    assert layer.shape == [48, 4 * 16 + 5 * 10 + 4 * 20 + 5 * 10]
    weights = [getattr(model.rnn, name) for name in SparseLSTM.weights(model.rnn)]
    assert layer.nnz == sparse.rnn.nnz == sum(int(own.count_nonzero()) for own in weights)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(sparse(x), expected, rtol=1e-5, atol=1e-5)
        measured = convert_to_sparse(model, example_inputs=x, verify=False, budget_s=1)
        torch.testing.assert_close(measured(x), expected, rtol=1e-5, atol=1e-5)
        assert next(own for own in report(measured).layers if own.name == "rnn").N == [6]
        loaded = load_converted(Tagger().eval(), sparse.state_dict())
        assert isinstance(loaded.rnn, SparseLSTM)
        torch.testing.assert_close(loaded(x), sparse(x))
        torch.testing.assert_close(to_dense(sparse)(x), expected, rtol=1e-5, atol=1e-5)
        sparseinfer.save_sparse(sparse, tmp_path / "tagger.safetensors")
        dense = sparseinfer.load_sparse_into(Tagger().eval(), tmp_path / "tagger.safetensors")
        torch.testing.assert_close(dense(x), expected, rtol=1e-5, atol=1e-5)
