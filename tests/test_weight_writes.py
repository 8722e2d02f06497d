"""Writes to a weight that a sparse layer unpacks are refused, and an assigned weight is packed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import init

from sparseinfer import (
    SparseConv1d,
    SparseConv2d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseGRU,
    SparseLinear,
    SparseLSTM,
    convert_to_sparse,
)
from sparseinfer.formats.stand_in import PackedWeight, ReadOnly
from sparseinfer.layers.attention import SparseMultiheadAttention

Write = Callable[[Any], object]


def _pruned(layer: nn.Module) -> Any:
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            parameter.data = sparse_weight(parameter.shape, 0.4)
    return layer


def _attention(**options: Any) -> Any:
    separate = options.pop("separate", False)
    dense = _pruned(nn.MultiheadAttention(8, 2, **options))
    return SparseMultiheadAttention.from_dense(dense, separate=separate)


LAYERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: SparseLinear.from_dense(_pruned(nn.Linear(8, 8))), "weight"),
    (lambda: SparseLinear.from_dense(_pruned(nn.Linear(8, 8)), "csr"), "weight"),
    (lambda: SparseConv1d.from_dense(_pruned(nn.Conv1d(4, 6, 3))), "weight"),
    (lambda: SparseConv2d.from_dense(_pruned(nn.Conv2d(4, 6, 3, groups=2))), "weight"),
    (lambda: SparseConvTranspose1d.from_dense(_pruned(nn.ConvTranspose1d(4, 6, 3))), "weight"),
    (
        lambda: SparseConvTranspose2d.from_dense(_pruned(nn.ConvTranspose2d(4, 6, 3, stride=2))),
        "weight",
    ),
    (lambda: SparseLSTM.from_dense(_pruned(nn.LSTM(8, 8))), "weight_ih_l0"),
    (lambda: SparseGRU.from_dense(_pruned(nn.GRU(8, 8, 2, bidirectional=True))),
     "weight_hh_l1_reverse"),
    (lambda: _attention(), "in_proj_weight"),
    (lambda: _attention(separate=True), "in_proj_weight"),
    (lambda: _attention(kdim=4, vdim=6), "v_proj_weight"),
]  # fmt: skip

WRITES: dict[str, Write] = {
    "add_": lambda w: w.add_(1),
    "data": lambda w: setattr(w, "data", torch.ones(w.shape)),
    "data.add_": lambda w: w.data.add_(1),
    "data +=": lambda w: w.data.__iadd__(1),
    "detach": lambda w: w.detach().mul_(2),
    "transpose": lambda w: w.transpose(0, 1).mul_(2),
    "flat": lambda w: w.view(-1)[3:].fill_(2.0),
    "item": lambda w: w.__setitem__(0, 1.0),
    "item of a row": lambda w: w[0].__setitem__(0, 1.0),
    "chunk": lambda w: w.chunk(2)[1].zero_(),
    "unbind": lambda w: w.unbind()[0].zero_(),
    "as_strided": lambda w: w.as_strided((2,), (1,)).add_(1),
    "no copy": lambda w: w.contiguous().float().cpu().add_(1),
    "copy_": lambda w: w.copy_(torch.ones(w.shape)),
    "set_": lambda w: w.set_(torch.ones(w.shape)),
    "resize_": lambda w: w.resize_(2),
    "apply_": lambda w: w.apply_(lambda value: value + 1),
    "map_": lambda w: w.map_(torch.ones(w.shape), lambda a, b: b),
    "masked_fill_": lambda w: w.masked_fill_(torch.ones(w.shape, dtype=torch.bool), 0.0),
    "clamp_": lambda w: torch.clamp_(w, 0.0, 1.0),
    "relu": lambda w: F.relu(w, inplace=True),
    "max_norm": lambda w: F.embedding(torch.tensor([0]), w.flatten(1), max_norm=0.01),
    "out": lambda w: torch.add(torch.ones(w.shape), 1, out=w),
    "out=data": lambda w: torch.mul(w, 2, out=w.data),
    "foreach": lambda w: torch._foreach_add_([torch.ones(2), w], 1.0),
    "normal_": lambda w: init.normal_(w),
    "trunc_normal_": lambda w: init.trunc_normal_(w),
    "kaiming_uniform_": lambda w: init.kaiming_uniform_(w),
    "constant_": lambda w: init.constant_(w.data, 1.0),
    "requires_grad_": lambda w: w.requires_grad_(),
    "requires_grad": lambda w: setattr(w, "requires_grad", True),
    "grad": lambda w: setattr(w, "grad", torch.ones(w.shape)),
    "optimizer": lambda w: torch.optim.SGD([w.requires_grad_()], lr=0.1),
    "fused": lambda w: torch._fused_sgd_(
        [w], [torch.ones(w.shape)], [], weight_decay=0.0, momentum=0.0, lr=0.1, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=True,
    ),
    "vector": lambda w: nn.utils.vector_to_parameters(torch.ones(w.numel()), [w]),
    "operator": lambda w: torch.ops.aten.add_.Tensor(w, torch.ones(w.shape)),
    "Parameter": lambda w: nn.Parameter(w.detach()),
}  # fmt: skip


@pytest.mark.parametrize(("make", "name"), LAYERS)
def test_every_write_is_refused(make: Callable[[], Any], name: str) -> None:
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    for write in WRITES.values():
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode(), pytest.raises(RuntimeError, match="expected no write to a weight"):
                write(getattr(layer, name))
    with pytest.raises(ValueError, match="read-only"):
        getattr(layer, name).detach().numpy()[...] = 0.0
    with pytest.raises(ValueError, match="read-only"):
        numpy.asarray(getattr(layer, name).data).fill(0.0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())


def test_past_torch_functions_the_dispatcher_refuses() -> None:
    weight = LAYERS[0][0]().weight
    assert type(weight) is PackedWeight
    with torch._C.DisableTorchFunctionSubclass():
        for write in ("add_", "out=", "foreach"):
            with pytest.raises(RuntimeError, match="expected no write to a weight"):
                if write == "add_":
                    weight.add_(1)
                elif write == "out=":
                    torch.add(torch.ones(8, 8), 1, out=weight)
                else:
                    torch._foreach_mul_([weight], 2.0)
        assert torch.equal(torch.add(weight, 0), LAYERS[0][0]().weight * 0 + weight)


def test_the_error_says_what_to_do() -> None:
    layer = LAYERS[0][0]()
    with pytest.raises(RuntimeError) as raised:
        layer.weight.data = torch.zeros(8, 8)
    for text in ("an assignment to .data", "layer.weight = weight", "to_dense(model)", "clone()"):
        assert text in str(raised.value)


def test_what_is_no_write_gives_plain_tensors() -> None:
    layer = LAYERS[0][0]()
    dense = layer.dense_weight()
    layer.weight.requires_grad_(False)
    layer.weight.requires_grad = False
    layer.requires_grad_(False)
    copied = layer.weight.clone()
    assert type(copied) is type(copied.add_(1)) is Tensor
    assert type(layer.weight @ dense) is type(layer.weight.double()) is Tensor
    target = nn.Parameter(torch.ones(8, 8))
    target.data.copy_(layer.weight)
    target.data[:4] = layer.weight[:4]
    assert torch.equal(target, dense)
    torch.mul(layer.weight, 2, out=(out := torch.empty(8, 8)))
    assert torch.equal(out, 2 * dense)
    assert type(layer.weight.detach()[0]) is ReadOnly
    learned = layer.weight.detach().clone().requires_grad_()
    (learned @ layer.weight).sum().backward()
    assert learned.grad is not None


@pytest.mark.parametrize(("make", "name"), LAYERS)
@pytest.mark.parametrize("wrap", [nn.Parameter, lambda tensor: tensor])
def test_an_assigned_weight_is_packed(make: Callable[[], Any], name: str, wrap: Any) -> None:
    layer = make()
    names = list(layer.state_dict())
    weight = sparse_weight(getattr(layer, name).shape, 0.5)
    setattr(layer, name, wrap(weight))
    assert torch.equal(getattr(layer, name), weight)
    assert list(layer.state_dict()) == names
    assert torch.equal(getattr(layer.to_dense(), name), weight)
    setattr(layer, name, 2 * getattr(layer, name))
    assert torch.equal(getattr(layer, name), 2 * weight)


def test_an_assigned_weight_is_what_the_layer_computes_with() -> None:
    layer, x = SparseLinear.from_dense(nn.Linear(8, 8), "csr"), torch.randn(3, 8)
    layer.weight = torch.eye(8, dtype=torch.float64)
    assert layer.format == "csr"
    torch.testing.assert_close(layer(x), x + layer.bias)
    lstm = nn.LSTM(8, 8)
    sparse: Any = SparseLSTM.from_dense(lstm)
    for name, parameter in lstm.named_parameters():
        parameter.data.mul_(0.5)
        setattr(sparse, name, nn.Parameter(parameter.detach().clone()))
    torch.testing.assert_close(sparse(x)[0], lstm(x)[0])
    attention = _attention(separate=True)
    attention.in_proj_bias = nn.Parameter(torch.ones(24))
    assert torch.equal(attention.k_proj.bias, torch.ones(8))


@pytest.mark.parametrize("value", [None, 3, torch.ones(3, 3), torch.ones(8, 8, dtype=torch.int64)])
def test_what_cannot_be_packed_is_refused(value: Any) -> None:
    layer = LAYERS[0][0]()
    before = layer.dense_weight()
    with pytest.raises((TypeError, ValueError), match="expected a"):
        layer.weight = value
    assert torch.equal(layer.weight, before)
    with pytest.raises((TypeError, ValueError), match="expected a"):
        _attention(separate=True).in_proj_weight = value


@pytest.mark.parametrize("safe", [False, True])
def test_merging_an_adapter_into_a_sparse_layer_is_refused(safe: bool) -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(_pruned(nn.Linear(16, 16)), nn.ReLU(), _pruned(nn.Linear(16, 4)))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2))
    nn.init.normal_(adapted.base_model.model[0].lora_B["default"].weight)
    x = torch.randn(3, 16)
    sparse = convert_to_sparse(adapted, example_inputs=x, min_speedup=0, cache=False)
    assert isinstance(sparse.base_model.model[0].base_layer, SparseLinear)
    torch.testing.assert_close(sparse(x), adapted(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="expected no write to a weight"):
        sparse.merge_and_unload(safe_merge=safe)


@pytest.mark.parametrize("safe", [False, True])
def test_without_examples_an_adapted_layer_stays_dense_and_merges(safe: bool) -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(_pruned(nn.Linear(16, 16)), nn.ReLU(), _pruned(nn.Linear(16, 4)))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2))
    nn.init.normal_(adapted.base_model.model[0].lora_B["default"].weight)
    x = torch.randn(3, 16)
    expected = adapted(x)
    sparse = convert_to_sparse(adapted, min_speedup=0)
    merged = sparse.merge_and_unload(safe_merge=safe)
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-4)


class _Functional(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight)


def test_a_model_that_computes_with_a_weight_itself_is_warned_once() -> None:
    model, x = _Functional(LAYERS[0][0]()), torch.randn(3, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(8):
            model(x)
    (found,) = caught
    assert found.category is UserWarning and "3 forward calls" in str(found.message)
    assert "in_features=8" in str(found.message) and "to_dense(model)" in str(found.message)


def test_reads_outside_of_forward_calls_and_of_facts_are_not_warned_of() -> None:
    layer = LAYERS[0][0]()
    model = nn.Sequential(layer)
    model.register_forward_pre_hook(lambda *_: print(layer.weight.dtype, layer.weight.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            layer.weight.sum()
            layer.to_dense()
            model(torch.randn(3, 8))


@pytest.mark.parametrize(("make", "name"), LAYERS)
def test_a_weight_read_before_another_is_assigned_stays_what_it_was(
    make: Callable[[], Any], name: str
) -> None:
    layer = make()
    before = getattr(layer, name)
    values = before.clone()
    setattr(layer, name, nn.Parameter(torch.zeros(values.shape)))
    assert not getattr(layer, name).any()
    setattr(layer, name, before)
    assert torch.equal(getattr(layer, name), values)


@pytest.mark.parametrize(
    "dense",
    [
        nn.Linear(8, 8), nn.Conv2d(8, 4, 1), nn.ConvTranspose1d(8, 4, 3, stride=2),
    ],
)  # fmt: skip
def test_functional_call_borrows_a_layer(dense: nn.Module) -> None:
    x = torch.randn(8, 8, 8)
    model = convert_to_sparse(nn.Sequential(_pruned(dense)), min_speedup=0)
    before, state = model(x), list(model.parameters())
    zeros = {f"0.{name}": torch.zeros_like(own) for name, own in dense.named_parameters()}
    assert not torch.func.functional_call(model, zeros, (x,)).any()
    assert torch.equal(model(x), before)
    assert all(map(lambda one, other: one is other, model.parameters(), state))


def test_functional_call_borrows_an_attention() -> None:
    x = torch.randn(2, 5, 8)
    layer = _attention(batch_first=True)
    before = layer(x, x, x)[0]
    zeros = {"in_proj_weight": torch.zeros(24, 8), "in_proj_bias": torch.zeros(24)}
    assert not torch.equal(torch.func.functional_call(layer, zeros, (x, x, x))[0], before)
    assert torch.equal(layer(x, x, x)[0], before)


@pytest.mark.parametrize(
    "dense", [nn.Linear(8, 8), nn.Conv1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, stride=2)]
)
def test_compiled_code_reads_a_weight(dense: nn.Module) -> None:
    model = convert_to_sparse(nn.Sequential(_pruned(dense)), min_speedup=0)

    def doubled() -> Tensor:
        return model[0].weight * 2

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), dense.weight * 2)


def test_transforms_of_functions_read_a_weight_first() -> None:
    model = convert_to_sparse(nn.Sequential(_pruned(nn.Linear(8, 8))), min_speedup=0)
    gradient = torch.func.grad(lambda x: (x @ model[0].weight).sum())(torch.ones(8))
    assert torch.allclose(gradient, model[0].weight.sum(dim=1))
