"""`to_dense`: every kind of sparse layer becomes torch's own again; all else stays as it was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import sparseinfer


def pruned(module: nn.Module, kept: float = 0.2) -> nn.Module:
    """`module` with zeros in every matrix."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand(parameter.shape, generator=generator) < kept
    return module.eval()


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


KINDS = {
    "linear": (lambda: nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8, bias=False)),
               torch.randn(4, 32)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(8, 8, 3, padding="same", groups=2)),
               torch.randn(2, 8, 20)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding_mode="reflect", padding=1)),
               torch.randn(2, 8, 12, 12)),
    "convtranspose1d": (lambda: nn.Sequential(nn.ConvTranspose1d(8, 8, 4, 2, 1)),
                        torch.randn(2, 8, 12)),
    "convtranspose2d": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 6, 3, 2, groups=2)),
                        torch.randn(2, 8, 6, 6)),
    "lstm": (lambda: nn.LSTM(16, 16, 2, bidirectional=True, batch_first=True),
             torch.randn(2, 5, 16)),
    "gru": (lambda: nn.GRU(16, 16, bias=False), torch.randn(5, 2, 16)),
    "rnn": (lambda: nn.RNN(16, 16, nonlinearity="relu"), torch.randn(5, 2, 16)),
    "attention": (lambda: Attention(), torch.randn(2, 5, 32)),
    "attention with bias_kv": (lambda: Attention(kdim=32, vdim=32, add_bias_kv=True, bias=False),
                               torch.randn(2, 5, 32)),
    "encoder": (lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2), torch.randn(2, 5, 32)),
}  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_as_it_was(kind: str, inplace: bool) -> None:
    torch.manual_seed(0)
    build, x = KINDS[kind]
    model = pruned(build())
    sparse = sparseinfer.convert_to_sparse(copy.deepcopy(model), min_speedup=0)
    classes = [type(module) for module in sparse.modules()]
    assert classes != [type(module) for module in model.modules()]
    dense = sparseinfer.to_dense(sparse, inplace=inplace)
    assert [type(module) for module in dense.modules()] == [
        type(module) for module in model.modules()
    ]
    for (name, was), (same, now) in zip(
        model.state_dict().items(), dense.state_dict().items(), strict=True
    ):
        assert name == same
        assert torch.equal(was, now)
    expected, got = model(x), dense(x)
    assert torch.equal(expected[0], got[0])
    assert all(parameter.requires_grad for parameter in dense.parameters())
    pickle.loads(pickle.dumps(dense))
    if not inplace:
        assert [type(module) for module in sparse.modules()] == classes


def test_transformers_conv1d_comes_back() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = pruned(nn.Sequential(pytorch_utils.Conv1D(24, 16)))
    dense = sparseinfer.to_dense(sparseinfer.convert_to_sparse(model, min_speedup=0))
    assert type(dense[0]) is pytorch_utils.Conv1D
    assert torch.equal(dense[0].weight, model[0].weight)
    x = torch.randn(3, 16)
    assert torch.equal(dense(x), model(x))


def test_hooks_attributes_and_flags_are_kept() -> None:
    model = pruned(nn.Sequential(nn.Linear(16, 16), nn.LSTM(16, 8), Attention()))
    called = []
    for layer in (model[0], model[1], model[2].attention):
        layer.register_forward_hook(lambda module, args, y: called.append(type(module)))
        layer.of_user = {"rank": 3}
    model[0].train()
    model[2].requires_grad_(False)
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    dense = sparseinfer.to_dense(sparse)
    dense[1](dense[0](torch.randn(5, 16)))
    dense[2](torch.randn(1, 5, 32))
    assert called == [nn.Linear, nn.LSTM, nn.MultiheadAttention]
    assert all(layer.of_user == {"rank": 3} for layer in (dense[0], dense[1], dense[2].attention))
    assert (dense[0].training, dense[1].training) == (True, False)
    assert not any(parameter.requires_grad for parameter in dense[2].parameters())
    assert dense[0].weight.requires_grad
    assert not vars(dense).keys() & {"_sparseinfer_report"}
    assert vars(dense[0]).keys() == vars(model[0]).keys()


@pytest.mark.parametrize("inplace", [False, True])
def test_shared_layers_and_biases_stay_shared(inplace: bool) -> None:
    first, second, third = (nn.Linear(16, 16) for _ in range(3))
    third.bias = second.bias
    model = pruned(nn.Sequential(first, second, first, third))
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    assert isinstance(sparse[0], sparseinfer.SparseLinear)
    dense = sparseinfer.to_dense(sparse, inplace=inplace)
    assert dense[0] is dense[2]
    assert dense[1].bias is dense[3].bias
    assert (dense[1].bias is sparse[1].bias) is inplace
    with torch.no_grad():
        dense[1].bias += 1.0
    assert torch.equal(dense[3].bias, second.bias + 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_is_that_of_the_rest(dtype: torch.dtype) -> None:
    model = pruned(nn.Sequential(nn.Linear(32, 32), Attention(), nn.GRU(32, 16)))
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0).to(dtype)
    dense = sparseinfer.to_dense(sparse)
    assert {parameter.dtype for parameter in dense.parameters()} == {dtype}
    y, _ = dense(torch.randn(1, 3, 32).to(dtype))
    assert y.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "gru", "attention with bias_kv"])
def test_layers_without_a_bias_come_back_in_their_type(kind: str, dtype: torch.dtype) -> None:
    build, x = KINDS[kind]
    model = pruned(build()).to(dtype)
    dense = sparseinfer.to_dense(sparseinfer.convert_to_sparse(model, min_speedup=0))
    assert {own.dtype for own in dense.parameters()} == {dtype}
    dense(x.to(dtype))


def test_transformer_layers_take_their_fast_path_again() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
    model = pruned(nn.TransformerEncoder(layer, 2))
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    assert not sparse.use_nested_tensor
    dense = sparseinfer.to_dense(sparse)
    assert dense.use_nested_tensor is model.use_nested_tensor is True
    assert dense.layers[1].activation_relu_or_gelu == 2


def test_a_layer_alone_and_a_dense_model() -> None:
    layer = sparseinfer.SparseConv2d.from_dense(pruned(nn.Conv2d(4, 4, 3)))
    assert type(sparseinfer.to_dense(layer)) is nn.Conv2d
    model = nn.Sequential(nn.Linear(4, 4))
    copied = sparseinfer.to_dense(model)
    assert copied is not model
    assert torch.equal(copied[0].weight, model[0].weight)
    assert sparseinfer.to_dense(model, inplace=True) is model


def test_a_fused_activation_becomes_a_layer_behind() -> None:
    linear = pruned(nn.Linear(16, 8))
    layer = sparseinfer.SparseLinear.from_dense(linear, activation="relu")
    x = torch.randn(3, 16)
    dense = sparseinfer.to_dense(nn.Sequential(layer))
    assert torch.equal(dense(x), linear(x).relu())
    assert dense[0][0].bias is not layer.bias


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got dict"):
        sparseinfer.to_dense({})
    model = nn.Sequential(sparseinfer.SparseLinear.from_dense(nn.Linear(4, 4)))
    model.kept = model(torch.ones(1, 4))
    with pytest.raises(TypeError, match=r"try to_dense\(model, inplace=True\)"):
        sparseinfer.to_dense(model)
    assert type(sparseinfer.to_dense(model, inplace=True)[0]) is nn.Linear


def test_adapters_of_peft_start_from_the_dense_model() -> None:
    peft = pytest.importorskip("peft")
    model = pruned(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)))
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    config = peft.LoraConfig(target_modules=["0", "2"], r=2, init_lora_weights=False)
    with pytest.raises(ValueError, match=r"Target module SparseLinear\(.*is not supported"):
        peft.get_peft_model(copy.deepcopy(sparse), config)
    adapted = peft.get_peft_model(sparseinfer.to_dense(sparse), config)
    x = torch.randn(3, 32)
    y = adapted(x)
    assert not torch.allclose(y, model(x))
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(x), y)
    again = sparseinfer.convert_to_sparse(merged, min_speedup=0)
    torch.testing.assert_close(again(x), y)
