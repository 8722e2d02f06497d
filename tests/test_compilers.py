"""torch.compile, torch.export, torch.jit and torch.fx take the sparse layers as any others."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.layers.base import SparseLayer

KINDS = ("linear", "conv1d", "conv2d", "network")


def _model(kind: str) -> tuple[Any, Tensor]:
    """A sparse model and an input of batch 3."""
    if kind == "linear":
        return _sparse(nn.Linear(20, 6)), torch.randn(3, 20)
    if kind == "conv1d":
        return _sparse(nn.Conv1d(4, 6, 3, padding="same")), torch.randn(3, 4, 9)
    conv = _sparse(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"))
    if kind == "conv2d":
        return conv, torch.randn(3, 4, 8, 9)
    pool = nn.AdaptiveAvgPool2d(4)
    head = _sparse(nn.Linear(96, 5), activation="gelu")
    return nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), head), torch.randn(3, 4, 8, 8)


def _sparse(dense: Any, activation: str = "none") -> SparseLayer:
    dense.weight.data = sparse_weight(dense.weight.shape, 0.3)
    classes: dict[Any, type[SparseLayer]] = {
        nn.Linear: SparseLinear, nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d,
    }  # fmt: skip
    return classes[type(dense)].from_dense(dense, activation=activation)


@pytest.fixture(autouse=True)
def _no_code_of_other_tests() -> None:
    torch._dynamo.reset()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_compile_makes_one_graph(kind: str, dynamic: bool) -> None:
    model, x = _model(kind)
    counting = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=counting)
    batches = x, torch.cat([x, x])
    for batch in batches:
        with torch.no_grad():
            assert torch.equal(compiled(batch), model(batch))
    assert counting.frame_count == (1 if dynamic else 2)
    for batch in batches:
        gradients = []
        for call in (compiled, model):
            given = batch.clone().requires_grad_()
            gradients.append(torch.autograd.grad(call(given).sin().sum(), given)[0])
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_in_every_mode(backend: str) -> None:
    model, x = _model("network")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu"):
        y, expected = compiled(x), model(x)
    assert y.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)


def test_compile_follows_a_weight_that_is_loaded() -> None:
    model, x = _model("linear")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(x)
        model.load_state_dict(_sparse(nn.Linear(20, 6)).state_dict())
        assert torch.equal(compiled(x), model(x))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_export_round_trip(kind: str, strict: bool) -> None:
    model, x = _model(kind)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},), strict=strict)
    assert any("sparseinfer" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    wide = torch.cat([x, x])
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x)) and torch.equal(loaded(wide), model(wide))
        assert torch.equal(program.run_decompositions().module()(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_jit_trace_round_trip(kind: str) -> None:
    model, x = _model(kind)
    file = io.BytesIO()
    traced = torch.jit.trace(model, x)
    assert "sparseinfer::" in str(traced.inlined_graph)
    torch.jit.save(traced, file)
    file.seek(0)
    loaded, wide = torch.jit.load(file), torch.cat([x, x])
    assert torch.equal(loaded(wide), model(wide))


@pytest.mark.parametrize("kind", KINDS)
def test_fx_traces(kind: str) -> None:
    model, x = _model(kind)
    wrapped = nn.Sequential(model)
    if kind == "linear":  # a convolution asks for the input's rank, which symbols lack
        assert torch.equal(torch.fx.symbolic_trace(wrapped)(x), model(x))
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(lambda x: wrapped(x), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
        assert "sparseinfer." in graph.code
        assert torch.equal(graph(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call(kind: str) -> None:
    model, x = _model(kind)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data += 1
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    assert torch.equal(torch.func.functional_call(model, state, (x,)), other(x))


def test_channels_last_images_come_out_contiguous_and_compile_so() -> None:
    model, x = _model("conv2d")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    strided = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for y in (model(strided), compiled(strided)):
            assert y.is_contiguous() and torch.equal(y, model(x))
