"""The drop-in layers do what the dense ones do: shapes, geometry, state, copies, compilers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import check_linear, sparse_weight
from torch import nn
from torch.nn.utils import parametrize, prune

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.layers.linear_conv import SparseLayer

CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3),
    nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"),
    nn.Conv1d(4, 8, 5, stride=3, padding=4, dilation=2, groups=4, bias=False),
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2)),
    nn.Conv2d(4, 6, 2, padding="same"),
    nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2), padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding="valid"),
    nn.Conv2d(4, 8, 3, padding=2, groups=4, padding_mode="replicate"),
    nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
]


def _sparse(dense: nn.Module, density: float = 0.4) -> Any:
    dense.weight.data = sparse_weight(dense.weight.shape, density)  # type: ignore[arg-type]
    classes = {nn.Linear: SparseLinear, nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d}
    return classes[type(dense)].from_dense(dense)  # type: ignore[attr-defined]


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dense", CONVOLUTIONS, ids=str)
def test_convolutions(dense: nn.Module) -> None:
    sparse = _sparse(dense)
    image = (15,) if isinstance(dense, nn.Conv1d) else (11, 14)
    for shape in ((2, 4, *image), (4, *image), (0, 4, *image)):
        x = torch.randn(shape)
        _close(sparse(x), dense(x))
    _close(sparse(input=x), dense(input=x))
    assert torch.equal(sparse.dense_weight(), dense.weight)
    back = sparse.to_dense()
    assert repr(back) == repr(dense)
    assert torch.equal(back(x), dense(x))


@hypothesis.given(data=st.data())
def test_convolutions_drawn(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    groups = data.draw(st.sampled_from((1, 1, 2, 4)))
    axis = st.integers(1, 5)
    kernel = (data.draw(axis), data.draw(axis))
    dilation = data.draw(st.integers(1, 2))
    padding = data.draw(st.sampled_from(["same", "valid", 0, 1, 2, (2, 0)]))
    stride = 1 if padding == "same" else data.draw(st.integers(1, 3))
    dense = nn.Conv2d(
        4, 4 * groups, kernel, stride, padding, dilation, groups,
        bias=data.draw(st.booleans()), padding_mode=mode,
    )  # fmt: skip
    x = torch.randn(2, 4, data.draw(st.integers(11, 20)), data.draw(st.integers(11, 20)))
    _close(_sparse(dense)(x), dense(x))


def test_activation_is_fused_and_kept() -> None:
    dense = nn.Linear(20, 8)
    sparse = SparseLinear.from_dense(dense, activation="gelu")
    x = torch.randn(3, 20)
    _close(sparse(x), nn.functional.gelu(dense(x)))
    _close(sparse.to_dense()(x), sparse(x))
    assert isinstance(sparse.to_dense(), nn.Sequential)
    assert "activation=gelu" in repr(sparse)
    with pytest.raises(ValueError, match=r"activation.*swish"):
        SparseLinear.from_dense(dense, activation="swish")


def test_a_new_layer_computes_its_bias() -> None:
    layer = SparseLinear(20, 8)
    layer.bias.data = torch.randn(8)
    assert torch.equal(layer(torch.randn(2, 20)), layer.bias.expand(2, 8))
    assert SparseConv2d(4, 6, 3, bias=False)(torch.randn(1, 4, 5, 5)).abs().sum() == 0


def test_bad_layers() -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Linear, got Conv1d"):
        SparseLinear.from_dense(nn.Conv1d(4, 4, 1))
    with pytest.raises(TypeError, match="float32"):
        SparseLinear.from_dense(nn.Linear(4, 4).double())
    with pytest.raises(ValueError, match="groups"):
        SparseConv2d(4, 6, 3, groups=4)
    with pytest.raises(ValueError, match="expected a packed weight of shape"):
        SparseLinear(4, 5, packed=SparseLinear(4, 4).packed)
    with pytest.raises(ValueError, match="expected a format"):
        SparseLinear(4, 4, format="none")


def test_fully_zero_and_fully_dense() -> None:
    for density in (0.0, 1.0):
        dense = nn.Linear(33, 10)
        sparse = _sparse(dense, density)
        x = torch.randn(5, 33)
        check_linear(sparse(x), x, dense.weight.detach(), dense.bias.detach())


def test_masked_and_parametrized_layers() -> None:
    x = torch.randn(3, 20)
    masked = prune.l1_unstructured(nn.Linear(20, 8), "weight", amount=0.7)
    prune.random_unstructured(masked, "bias", amount=3)
    hookless = prune.l1_unstructured(nn.Linear(20, 8), "weight", amount=0.7)
    expected = hookless(x)
    hookless._forward_pre_hooks.clear()

    class Halve(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * (weight > 0) / 2

    parametrized = nn.Linear(20, 8)
    parametrize.register_parametrization(parametrized, "weight", Halve())
    _close(SparseLinear.from_dense(masked)(x), masked(x))
    _close(SparseLinear.from_dense(hookless)(x), expected)
    _close(SparseLinear.from_dense(parametrized)(x), parametrized(x))


def test_repr_names_what_matters() -> None:
    text = repr(_sparse(nn.Linear(20, 8), 0.0))
    for part in ("in_features=20", "out_features=8", "density=0", "format=panel", "bytes="):
        assert part in text


def test_weight_is_no_parameter() -> None:
    layer = SparseLinear.from_dense(nn.Linear(4, 3))
    assert layer.weight.shape == (3, 4) and layer.weight.dtype is torch.float32
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


# ---- state -------------------------------------------------------------------------------------


def test_state_dict_loads_whatever_the_non_zero_count() -> None:
    sparse, other = _sparse(nn.Linear(40, 16), 0.2), _sparse(nn.Linear(40, 16), 0.7)
    x = torch.randn(3, 40)
    assert sparse.packed.numel() != other.packed.numel()
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(x), sparse(x))
    fresh = SparseLinear(40, 16, format="csr")
    fresh.load_state_dict(sparse.state_dict(), assign=True)
    assert torch.equal(fresh(x), sparse(x)) and fresh.format == "panel"
    with torch.inference_mode():
        inference = SparseLinear(40, 16)
        inference.load_state_dict(sparse.state_dict())
    assert not inference.packed.is_inference()
    with torch.no_grad():
        assert torch.equal(inference(x), sparse(x))


def test_state_dict_that_does_not_fit() -> None:
    sparse = _sparse(nn.Linear(40, 16))
    with pytest.raises(RuntimeError, match=r"expected a packed weight of shape \[16, 41\]"):
        SparseLinear(41, 16).load_state_dict(sparse.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        SparseLinear(40, 16).load_state_dict({"bias": torch.zeros(16)})
    state = sparse.state_dict()
    state["packed"] = state["packed"].clone()
    state["packed"][300] ^= 1
    with pytest.raises(RuntimeError, match=r"While loading packed: .*corrupt"):
        SparseLinear(40, 16).load_state_dict(state)
    grouped = SparseConv1d(8, 8, 3, groups=2)
    with pytest.raises(RuntimeError, match="groups=1"):
        grouped.load_state_dict(SparseConv1d(4, 8, 3).state_dict())


def test_saved_state_loads_with_weights_only() -> None:
    sparse = _sparse(nn.Conv2d(4, 8, 3))
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    fresh = SparseConv2d(4, 8, 3)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(fresh(x), sparse(x))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied: Any, inference: bool) -> None:
    sparse = _sparse(nn.Linear(40, 16))
    x = torch.randn(3, 40)
    sparse(x)
    with torch.inference_mode(inference):
        twin = copied(sparse)
    assert not twin.packed.is_inference()
    assert twin.packed.data_ptr() != sparse.packed.data_ptr()
    with torch.no_grad():
        assert torch.equal(twin(x), sparse(x))


def test_a_tampered_pickle_is_rejected() -> None:
    sparse = _sparse(nn.Linear(40, 16))
    sparse.packed[300] ^= 1
    with pytest.raises(ValueError, match="corrupt"):
        pickle.loads(pickle.dumps(sparse))


def test_meta_device_and_dtype_moves() -> None:
    sparse = _sparse(nn.Linear(40, 16))
    meta = copy.deepcopy(sparse).to("meta")
    assert meta.packed.is_meta and "bytes=" in repr(meta)
    assert sparse.double().packed.dtype is torch.uint8
    meta.load_state_dict(sparse.float().state_dict(), assign=True)
    x = torch.randn(3, 40)
    assert torch.equal(meta(x), sparse(x))
    with torch.inference_mode():
        assert not copy.deepcopy(sparse).to(torch.float32).packed.is_inference()


def test_input_and_bias_gradients_reach_through_a_network() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    sparse = nn.Sequential(_sparse(dense[0]), nn.ReLU(), nn.Flatten(), _sparse(dense[3]))
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    sparse(x).sum().backward()
    ours, x.grad = x.grad, None
    dense(x).sum().backward()
    _close(ours, x.grad)
    _close(sparse[0].bias.grad, dense[0].bias.grad)
    assert isinstance(sparse[3], SparseLayer)


# ---- compilers ---------------------------------------------------------------------------------


def _network() -> nn.Module:
    return nn.Sequential(
        _sparse(nn.Conv2d(3, 8, 3, padding=1)), nn.ReLU(), nn.Flatten(), _sparse(nn.Linear(288, 5))
    )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_full_graph(backend: str) -> None:
    network = _network()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 6, 6)
        with torch.no_grad():
            _close(compiled(x), network(x))
    x.requires_grad_()
    compiled(x).sum().backward()
    ours, x.grad = x.grad, None
    network(x).sum().backward()
    _close(ours, x.grad)


def test_export() -> None:
    network = _network()
    x = torch.randn(2, 3, 6, 6)
    program = torch.export.export(network, (x,))
    _close(program.module()(x), network(x))
