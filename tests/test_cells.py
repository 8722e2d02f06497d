"""Sparse recurrent cells do what torch's do: results, errors, state, gradients, conversion."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import prune

import sparseinfer
from sparseinfer import (
    SparseGRUCell,
    SparseLSTMCell,
    SparseRNNCell,
    convert_to_sparse,
    load_converted,
    report,
    to_dense,
)
from sparseinfer.convert.scan import scan
from sparseinfer.layers.cells import SparseCell
from sparseinfer.prune import Pruner

PAIRS: list[tuple[type[nn.RNNCellBase], type[SparseCell], dict[str, Any]]] = [
    (nn.GRUCell, SparseGRUCell, {}),
    (nn.LSTMCell, SparseLSTMCell, {}),
    (nn.RNNCell, SparseRNNCell, {}),
    (nn.RNNCell, SparseRNNCell, {"nonlinearity": "relu"}),
]
pairs = pytest.mark.parametrize("dense_type, sparse_type, extra", PAIRS)


def _sparse(dense: Any, density: float = 0.4) -> Any:
    for name, parameter in dense.named_parameters():
        if name.startswith("weight"):
            parameter.data *= torch.rand_like(parameter) < density
    return dense.eval()


def _states(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _hidden(dense: Any, *batch: int) -> Any:
    """Random states before a step, as the cell takes them."""
    states = [torch.randn(*batch, dense.hidden_size) for _ in _states(dense(torch.zeros(1, 6)))]
    return tuple(states) if len(states) == 2 else states[0]


def _same(found: Any, expected: Any) -> None:
    for a, b in zip(_states(found), _states(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Loop(nn.Module):
    """A cell that a model steps itself."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.out = cell, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hx = None
        for step in x:
            hx = self.cell(step, hx)
        return self.out(_states(hx)[0])


def _loop(dense_type: Any, extra: dict[str, Any]) -> Loop:
    return Loop(_sparse(dense_type(6, 8, **extra))).eval()


@pairs
@hypothesis.given(data=st.data())
def test_results_are_those_of_torch(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any], data: st.DataObject
) -> None:
    dense = _sparse(dense_type(6, data.draw(st.integers(1, 19)), data.draw(st.booleans()), **extra))
    sparse = sparse_type.from_dense(dense, data.draw(st.sampled_from(("panel", "csr"))))
    batch = data.draw(st.sampled_from(((), (1,), (5,), (0,))))
    with torch.no_grad():
        hx = _hidden(dense, *batch) if data.draw(st.booleans()) else None
        x = torch.randn(*batch, 6)
        _same(sparse(x, hx), dense(x, hx))


@pairs
def test_gradients_are_those_of_torch(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    dense = _sparse(dense_type(6, 8, **extra))
    sparse = sparse_type.from_dense(dense)
    with torch.no_grad():
        x, hx = torch.randn(3, 6), _states(_hidden(dense, 3))
    found = []
    for layer in (sparse, dense):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, *hx)]
        result = layer(inputs[0], tuple(inputs[1:]) if len(hx) == 2 else inputs[1])
        sum(own.square().sum() for own in _states(result)).backward()  # type: ignore[union-attr]
        found.append([*(own.grad for own in inputs), layer.bias_ih.grad, layer.bias_hh.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pairs
def test_errors_are_those_of_torch(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    dense = dense_type(6, 8, **extra)
    sparse, other = sparse_type.from_dense(dense), dense_type(6, 7, **extra)
    with torch.no_grad():
        for x, hx in (
            (torch.zeros(1, 2, 6), None),
            (torch.zeros(2, 5), None),
            (torch.zeros(2, 6), _hidden(dense, 1, 2)),
            (torch.zeros(2, 6), _hidden(dense, 3)),
            (torch.zeros(2, 6), _hidden(dense)),
            (torch.zeros(6), _hidden(dense, 1)),
            (torch.zeros(2, 6), _hidden(other, 2)),
        ):
            with pytest.raises((ValueError, RuntimeError)) as expected:
                dense(x, hx)
            with pytest.raises(type(expected.value)) as found:
                sparse(x, hx)
            assert str(found.value).startswith(f"{expected.value}; try ")
    with pytest.raises(RuntimeError, match=r"expected a float32 input, got torch\.float64"):
        sparse(torch.zeros(2, 6).double())
    with pytest.raises(TypeError, match=f"expected an nn.{dense_type.__name__}, got GRU"):
        sparse_type.from_dense(nn.GRU(6, 8))


@pairs
def test_state_copies_and_dense_cells(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    dense = _sparse(dense_type(6, 8, **extra))
    sparse, x = sparse_type.from_dense(dense), torch.randn(2, 6)
    assert sorted(sparse.state_dict()) == ["hh.bias", "hh.packed", "ih.bias", "ih.packed"]
    with torch.no_grad():
        for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
            _same(other(x), sparse(x))
        fresh = sparse_type.from_dense(_sparse(dense_type(6, 8, **extra), 0.9))
        for state in (sparse.state_dict(), dense.state_dict()):
            fresh.load_state_dict(state)
            _same(fresh(x), dense(x))
        back = sparse.to_dense()
        assert repr(back) == repr(dense) == f"{dense_type.__name__}({sparse.extra_repr()})"
        for name, parameter in dense.named_parameters():
            assert torch.equal(back.get_parameter(name), parameter)
            assert torch.equal(getattr(sparse, name) + 0, parameter)
    assert repr(sparse_type.from_dense(dense_type(6, 8, False, **extra)).to_dense()) == repr(
        dense_type(6, 8, False, **extra)
    )


@pairs
def test_narrow_types_and_autocast(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    sparse, x = sparse_type.from_dense(_sparse(dense_type(6, 8, **extra))), torch.randn(2, 6)
    with torch.no_grad():
        expected = _states(sparse(x))
        narrow = _states(copy.deepcopy(sparse).bfloat16()(x.bfloat16()))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = _states(sparse(x))
    for found in (narrow, cast):
        for a, b in zip(found, expected, strict=True):
            assert a.dtype is torch.bfloat16
            torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)


@pytest.mark.sampled(1)
@pairs
def test_compiled_and_traced(dense_type: Any, sparse_type: Any, extra: dict[str, Any]) -> None:
    model, x = convert_to_sparse(_loop(dense_type, extra), min_speedup=0), torch.randn(3, 2, 6)
    sparse: Any = model.cell
    assert type(sparse) is sparse_type
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x))
    traced = torch.fx.symbolic_trace(nn.Sequential(sparse))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]


@pairs
def test_conversion_report_and_files(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any], tmp_path: Any
) -> None:
    model, x = _loop(dense_type, extra), torch.randn(5, 2, 6)
    prune.l1_unstructured(model.cell, "weight_hh", amount=0.5)
    sparse = convert_to_sparse(model, min_speedup=0)
    assert type(sparse.cell) is sparse_type
    layer = next(layer for layer in report(sparse).layers if layer.name == "cell")
    rows = model.cell.weight_ih.shape[0]
    assert (layer.kind, layer.shape) == (dense_type.__name__.lower(), [rows, 14])
    assert layer.nnz == sparse.cell.nnz < rows * 14 and layer.timing == "modelled"
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(sparse(x), expected, rtol=1e-5, atol=1e-5)
        measured = convert_to_sparse(model, example_inputs=x, verify=False)
        torch.testing.assert_close(measured(x), expected, rtol=1e-5, atol=1e-5)
        cell = next(own for own in report(measured).layers if own.name == "cell")
        assert (cell.timing, cell.N) == ("measured", [2]) and cell.inputs == "2x6 (5 calls)"
        loaded = load_converted(_loop(dense_type, extra), sparse.state_dict())
        assert type(loaded.cell) is sparse_type
        torch.testing.assert_close(loaded(x), sparse(x))
        dense = to_dense(sparse)
        assert type(dense.cell) is dense_type
        torch.testing.assert_close(dense(x), expected, rtol=1e-5, atol=1e-5)
        sparseinfer.save_sparse(sparse, tmp_path / "loop.safetensors")
        read = sparseinfer.load_sparse_into(_loop(dense_type, extra), tmp_path / "loop.safetensors")
        torch.testing.assert_close(read(x), expected, rtol=1e-5, atol=1e-5)


@pairs
def test_pruned_cells_are_converted(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    model = Loop(dense_type(6, 8, **extra)).eval()
    pruner = Pruner(model, scope="layer")
    assert list(pruner.masks) == ["cell.weight_hh", "cell.weight_ih", "out.weight"]
    pruner.prune(0.75)
    sparse = convert_to_sparse(model, min_speedup=0)
    cell: Any = sparse.cell
    assert type(cell) is sparse_type
    assert cell.nnz == sum(int(model.cell.get_parameter(n).count_nonzero()) for n in
                           ("weight_hh", "weight_ih"))  # fmt: skip
    x = torch.randn(4, 2, 6)
    torch.testing.assert_close(sparse(x), model(x), rtol=1e-5, atol=1e-5)


@pairs
def test_cells_on_a_gpu_and_subclasses_stay_dense(
    dense_type: Any, sparse_type: Any, extra: dict[str, Any]
) -> None:
    own = type("Own", (dense_type,), {"forward": lambda self, x, hx=None: x})
    assert "Own has a forward of its own" in scan(own(6, 8, **extra))[0].blocked
    cell = dense_type(6, 8, **extra)
    with FakeTensorMode():
        for name, parameter in cell.named_parameters():
            cell._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))
        (found,) = scan(cell)
    assert "no kernel for the steps of a recurrent layer" in found.blocked


def test_states_of_an_lstm_cell_are_a_pair() -> None:
    cell, h = SparseLSTMCell.from_dense(nn.LSTMCell(6, 8)), torch.zeros(2, 8)
    for hx in (h, (h,), (h, h, h)):
        with pytest.raises(TypeError, match=r"expected hx to be a tuple \(h, c\)"):
            cell(torch.zeros(2, 6), hx)
    _same(cell(torch.zeros(2, 6), [h, h]), cell(torch.zeros(2, 6)))


@pytest.mark.parametrize(
    "dense",
    [
        nn.GRUCell(4, 8),
        nn.LSTMCell(4, 8),
        nn.RNNCell(4, 8),
        nn.GRU(4, 8),
        nn.LSTM(4, 8, proj_size=2),
    ],
    ids=lambda dense: type(dense).__name__,
)
def test_int8_weights_are_refused_where_the_layer_is_made(dense: Any) -> None:
    sparse_type: Any = getattr(sparseinfer, f"Sparse{type(dense).__name__}")
    for asked in ({"weights": "int8"}, {"weights": "int8", "g": 4}):
        with pytest.raises(ValueError, match=rf"for {sparse_type.__name__}, got 'int8'.*float32'$"):
            sparse_type.from_dense(dense, **asked)
    assert sparse_type.from_dense(dense, weights="bfloat16").nnz > 0
