"""Modules skip the dispatcher where nothing has to see the call, and nobody can tell."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.layers.base import SparseLayer
from sparseinfer.ops.shortcut import unobserved

NAMES = ("linear", "conv1d", "conv2d")


def _case(name: str, activation: str = "none") -> tuple[Any, Any, tuple[Any, ...], Tensor]:
    """A sparse layer, its operator, the operator's options and an input."""
    dense: nn.Module
    if name == "linear":
        dense = nn.Linear(20, 6)
        layer: SparseLayer = SparseLinear.from_dense(_thin(dense), activation=activation)
        options: tuple[Any, ...] = (6, activation, 0)
        x = torch.randn(3, 20)
    elif name == "conv1d":
        dense = nn.Conv1d(4, 6, 3, padding=1)
        layer = SparseConv1d.from_dense(_thin(dense), activation=activation)
        options = (6, [3], [1], [1, 1], [1], 1, "zeros", activation, 0)
        x = torch.randn(2, 4, 9)
    else:
        dense = nn.Conv2d(4, 6, 3, padding=1)
        layer = SparseConv2d.from_dense(_thin(dense), activation=activation)
        options = (6, [3, 3], [1, 1], [1] * 4, [1, 1], 1, "zeros", activation, 0)
        x = torch.randn(2, 4, 8, 9)
    return layer, getattr(torch.ops.sparseinfer, name).default, options, x


def _thin(dense: Any) -> nn.Module:
    dense.weight.data = sparse_weight(dense.weight.shape, 0.3)
    return dense


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("name", NAMES)
def test_both_ways_give_the_same_bits_and_gradients(name: str, activation: str) -> None:
    layer, operator, options, x = _case(name, activation)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert unobserved(x, layer.packed, layer.bias)
            direct = layer(x)
            assert torch.equal(direct, operator(x, layer.packed, layer.bias, *options))
            assert direct.is_inference() == (mode is torch.inference_mode)
    gradients = []
    for call in (layer, lambda x: operator(x, layer.packed, layer.bias, *options)):
        given = x.clone().requires_grad_()
        assert unobserved(given, layer.packed, layer.bias)
        y = call(given)
        assert torch.equal(y, direct) and y.requires_grad
        gradients.append(torch.autograd.grad(y.sin().sum(), (given, layer.bias)))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


class _Overridden(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_modes_see_the_call(name: str, grad: bool) -> None:
    layer, _, _, x = _case(name)
    with torch.set_grad_enabled(grad):
        expected = layer(x)
        for mode in (_Seen(), _Overridden()):
            with mode:
                assert torch.equal(layer(x), expected)
            assert any(f"sparseinfer.{name}" in call for call in mode.calls)


@pytest.mark.parametrize("name", NAMES)
def test_the_profiler_sees_the_call(name: str) -> None:
    layer, _, _, x = _case(name)
    with torch.no_grad(), torch.profiler.profile() as profile:
        layer(x)
    assert f"sparseinfer::{name}" in [event.name for event in profile.events()]


class _Subclass(Tensor):
    calls: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _Subclass.calls.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", NAMES)
def test_tensor_subclasses_see_the_call(name: str) -> None:
    layer, _, _, x = _case(name)
    _Subclass.calls = []
    y = layer(x.as_subclass(_Subclass))
    assert isinstance(y, _Subclass)
    assert any(f"sparseinfer.{name}" in call for call in _Subclass.calls)


@pytest.mark.parametrize("name", NAMES)
def test_fake_and_meta_tensors_reach_no_kernel(name: str) -> None:
    layer, _, _, x = _case(name)
    shape = layer(x).shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x)).shape == shape
    meta = copy.deepcopy(layer).to("meta")
    assert meta(x.to("meta")).is_meta and meta(x.to("meta")).shape == shape
    for one, other in ((layer, x.to("meta")), (meta, x)):
        with pytest.raises(RuntimeError, match="same device"):
            one(other)


def test_negated_views_are_read_as_they_mean() -> None:
    """`conj().imag` is a view whose sign is a bit beside the memory."""
    layer, _, _, x = _case("linear")
    negated = torch._neg_view(x)
    assert negated.is_neg() and negated.data_ptr() == x.data_ptr()
    assert torch.equal(layer(negated), layer(-x))
    layer.bias = nn.Parameter(torch._neg_view(layer.bias.detach()))
    assert layer.bias.is_neg()
    with torch.no_grad():
        other = copy.deepcopy(layer)
        other.bias = nn.Parameter(layer.bias.detach().resolve_neg().clone())
        assert torch.equal(layer(x), other(x))


def test_a_parameter_and_a_strided_view_are_inputs_like_any_other() -> None:
    layer, _, _, x = _case("linear")
    assert torch.equal(layer(nn.Parameter(x)), layer(x))
    wide = torch.randn(3, 64)
    assert torch.equal(layer(wide[:, 5:25]), layer(wide[:, 5:25].contiguous()))


@pytest.mark.parametrize(
    "watching",
    [
        lambda: torch.autocast("cpu"),
        lambda: torch.profiler.profile(),
        lambda: torch.device("cpu"),
        forward_ad.dual_level,
        _Seen,
        FakeTensorMode,
    ],
)
def test_what_watches_is_noticed(watching: Callable[[], Any]) -> None:
    layer, _, _, x = _case("linear")
    assert unobserved(x, layer.packed, layer.bias)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watching())
        assert not unobserved(x, layer.packed, layer.bias)
    assert unobserved(x, layer.packed, layer.bias)


def test_what_is_not_a_plain_cpu_tensor_is_noticed() -> None:
    layer, _, _, x = _case("linear")
    packed, bias = layer.packed, layer.bias
    for odd in (x.to("meta"), x.to_sparse(), torch._neg_view(x), x.as_subclass(_Subclass)):
        assert not unobserved(odd, packed, bias)
    assert not unobserved(x, packed.to("meta"), bias)
    assert not unobserved(x, packed, nn.Parameter(bias.to("meta")))
    assert not unobserved(x, packed, nn.Parameter(torch._neg_view(bias.detach())))
    seen: list[bool] = []
    torch.vmap(lambda row: (seen.append(unobserved(row, packed, bias)), layer(row))[1])(x)
    assert seen == [False]


def test_hooks_are_called() -> None:
    layer, _, _, x = _case("linear")
    calls: list[str] = []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer(x.requires_grad_()).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_a_bias_that_is_no_parameter_of_the_layer_is_used() -> None:
    """Pruning and parametrizations keep the bias elsewhere."""
    for wrap in (
        lambda layer: nn.utils.prune.l1_unstructured(layer, "bias", amount=4),
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "bias", nn.ReLU()),
    ):
        layer, operator, options, x = _case("linear")
        wrapped = wrap(layer)
        assert torch.equal(wrapped(x), operator(x, wrapped.packed, wrapped.bias, *options))
