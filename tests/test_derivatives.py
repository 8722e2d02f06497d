"""Derivatives of the sparse layers beside those of the dense ones, by every way torch has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    vjp,
    vmap,
)
from torch.utils._pytree import tree_leaves

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.kernels.activations import ACTIVATIONS, activation_module

# torch runs an operator without a batching rule once a sample, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class _Dense(nn.Module):
    def __init__(self, layer: nn.Module, activation: str) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x))


def _pair(kind: str, activation: str) -> tuple[Any, Any, Tensor]:
    """A sparse layer, its dense equal and an input."""
    layer: Any
    if kind == "linear":
        layer, cls, x = nn.Linear(7, 5), SparseLinear, torch.randn(3, 7)
    elif kind == "conv1d":
        layer, cls, x = nn.Conv1d(2, 4, 3, 2, 1), SparseConv1d, torch.randn(2, 2, 7)  # type: ignore[assignment]
    else:
        layer = nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="circular")
        cls, x = SparseConv2d, torch.randn(2, 2, 4, 5)  # type: ignore[assignment]
    layer.weight.data = sparse_weight(layer.weight.shape, 0.5)
    return cls.from_dense(layer, activation=activation), _Dense(layer, activation), x


def _score(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).sin().sum()


def _dual(model: Any, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        y = model(forward_ad.make_dual(x, torch.ones_like(x)))
        return forward_ad.unpack_dual(y).tangent


def _bias_gradient(model: Any, x: Tensor) -> Tensor:
    ((name, bias),) = [(n, p) for n, p in model.named_parameters() if n.endswith("bias")]
    return grad(lambda b: functional_call(model, {name: b}, (x,)).sin().sum())(bias.detach())


def _bias_tangent(model: Any, x: Tensor) -> Tensor:
    ((name, bias),) = [(n, p) for n, p in model.named_parameters() if n.endswith("bias")]
    call = lambda b: functional_call(model, {name: b}, (x,))  # noqa: E731
    return jvp(call, (bias.detach(),), (torch.ones_like(bias),))[1]


TRANSFORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "jvp": lambda m, x: jvp(m, (x,), (torch.ones_like(x),)),
    "vjp": lambda m, x: vjp(m, x)[1](torch.ones_like(m(x))),
    "grad": lambda m, x: grad(_score(m))(x),
    "jacrev": lambda m, x: jacrev(m)(x),
    "jacfwd": lambda m, x: jacfwd(m)(x),
    "hessian": lambda m, x: hessian(_score(m))(x),
    "grad of grad": lambda m, x: grad(lambda z: grad(_score(m))(z).pow(2).sum())(x),
    "vmap": lambda m, x: vmap(m)(torch.stack([x, -x])),
    "vmap of grad": lambda m, x: vmap(grad(_score(m)))(torch.stack([x, -x])),
    "dual tensors": _dual,
    "gradient of the bias": _bias_gradient,
    "tangent of the bias": _bias_tangent,
}


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, kind: str, activation: str) -> None:
    sparse, dense, x = _pair(kind, activation)
    with torch.random.fork_rng():
        ours, theirs = (tree_leaves(TRANSFORMS[transform](model, x)) for model in (sparse, dense))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("no_grad", [False, True])
def test_tangents_do_not_need_gradients(no_grad: bool) -> None:
    sparse, dense, x = _pair("linear", "none")
    sparse.requires_grad_(False)
    with torch.set_grad_enabled(not no_grad):
        torch.testing.assert_close(_dual(sparse, x), _dual(dense, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives(activation: str) -> None:
    sparse, dense, x = _pair("conv2d", activation)
    results = []
    for model in (sparse, dense):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(given).pow(3).sum(), given, create_graph=True)
        results.append(torch.autograd.grad(first.pow(2).sum(), given)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_the_weight_has_no_gradient_and_says_so() -> None:
    sparse, _, x = _pair("linear", "none")
    assert not sparse.weight.requires_grad and not sparse.packed.requires_grad
    y = sparse(x)
    for tensor in (sparse.weight, sparse.packed):
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.autograd.grad(y.sum(), tensor, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"expected no write .* got requires_grad_"):
        sparse.weight.requires_grad_()
    with pytest.raises(RuntimeError, match="floating point"):
        sparse.packed.requires_grad_()


def test_an_optimiser_trains_the_bias_alone() -> None:
    sparse, _, x = _pair("linear", "relu")
    before = copy.deepcopy(sparse)
    sparse.requires_grad_()
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse(x).sum().backward()
    optimiser.step()
    assert not torch.equal(sparse.bias, before.bias)
    assert torch.equal(sparse.weight, before.weight)


def test_no_activation_keeps_no_input_alive() -> None:
    sparse, _, x = _pair("linear", "none")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        sparse(x.requires_grad_())
    assert saved == []


def test_forward_without_gradients_needs_none() -> None:
    sparse, dense, x = _pair("linear", "none")
    sparse.requires_grad_(False)
    assert not sparse(x).requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not sparse(x.requires_grad_()).requires_grad
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-5, atol=1e-5)
