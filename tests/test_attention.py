"""nn.MultiheadAttention and torch's transformer layers, converted: the whole contract is kept."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import sparse_weight
from torch import nn
from torch.nn.utils import parametrize, prune

from sparseinfer import SparseLinear, SparseMultiheadAttention, convert_to_sparse, report

E = 24
Results = tuple[torch.Tensor, torch.Tensor | None]


def _pruned(model: nn.Module, density: float = 0.3) -> nn.Module:
    """Every matrix of the model pruned, every vector random, so that no bias goes unnoticed."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = sparse_weight(parameter.shape, density)
            parameter.data *= parameter.shape[1] ** -0.5
        else:
            parameter.data = torch.randn(parameter.shape)
    return model


def _attention(**options: Any) -> nn.MultiheadAttention:
    attention = _pruned(nn.MultiheadAttention(E, 4, **options))
    assert isinstance(attention, nn.MultiheadAttention)
    return attention.eval()


def _close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _same(sparse: nn.Module, dense: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Against float64, as far off as float32 is allowed to be."""
    wide = [x.double() if x.is_floating_point() else x for x in args]
    wide_kwargs = {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in kwargs.items()
    }
    if len(args) == 3 and args[0] is args[1]:  # one tensor stays one tensor
        wide[1] = wide[0]
    if len(args) == 3 and args[1] is args[2]:
        wide[2] = wide[1]
    ours, exact = sparse(*args, **kwargs), copy.deepcopy(dense).double()(*wide, **wide_kwargs)
    for y, z in zip(ours, exact, strict=True) if isinstance(ours, tuple) else [(ours, exact)]:
        assert (y is None) is (z is None)
        if y is not None:
            _close(y.double(), z)


@hypothesis.given(data=st.data())
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_every_argument(data: st.DataObject) -> None:
    draw = data.draw
    flag = st.booleans()
    call = draw(st.sampled_from(["self", "cross", "query is value", "all differ"]))
    kdim, vdim = (draw(st.sampled_from([None, 10])), draw(st.sampled_from([None, 14])))
    if call != "all differ":
        kdim = vdim = None
    options = {
        "bias": draw(flag), "add_bias_kv": draw(flag), "add_zero_attn": draw(flag),
        "batch_first": draw(flag), "kdim": kdim, "vdim": vdim,
    }  # fmt: skip
    dense = _attention(**options)
    separate = draw(flag)
    sparse = SparseMultiheadAttention.from_dense(dense, separate=separate)
    batch = draw(st.sampled_from([None, 1, 3]))
    tokens, keys = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    if call in ("self", "query is value"):
        keys = tokens

    def made(length: int, width: int) -> torch.Tensor:
        if batch is None:
            return torch.randn(length, width)
        return torch.randn(*((batch, length) if options["batch_first"] else (length, batch)), width)

    query = made(tokens, E)
    key = query if call == "self" else made(keys, kdim or E)
    value = {"self": query, "cross": key, "query is value": query}.get(call, made(keys, vdim or E))
    kwargs: dict[str, Any] = {
        "need_weights": draw(flag), "average_attn_weights": draw(flag),
    }  # fmt: skip
    mask = draw(st.sampled_from(["none", "bool", "float", "causal"]))
    if mask == "causal":
        kwargs["attn_mask"] = torch.ones(tokens, keys).triu(1).bool()
        kwargs["is_causal"] = tokens == keys
    elif mask != "none":
        deep = ((batch or 1) * 4,) if draw(flag) else ()
        hidden = torch.rand(*deep, tokens, keys) < 0.4
        hidden[..., 0] = False  # a query that may look at nothing has no defined result
        kwargs["attn_mask"] = hidden if mask == "bool" else torch.randn(hidden.shape)
    padding = draw(st.sampled_from(["none", "bool", "float"]))
    if padding != "none":
        hidden = torch.rand(*(() if batch is None else (batch,)), keys) < 0.4
        hidden[..., 0] = False
        kwargs["key_padding_mask"] = hidden if padding == "bool" else torch.randn(hidden.shape)
    with torch.no_grad():
        _same(sparse, dense, query, key, value, **kwargs)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_dropout_draws_what_torch_draws(need_weights: bool, separate: bool) -> None:
    dense = _attention(dropout=0.5).train()
    sparse = SparseMultiheadAttention.from_dense(dense, separate=separate)
    assert sparse.training
    x = torch.randn(6, 2, E)
    torch.manual_seed(1)
    expected = dense(x, x, x, need_weights=need_weights)
    torch.manual_seed(1)
    _close(sparse(x, x, x, need_weights=need_weights), expected)
    quiet = sparse.eval()(x, x, x)[0]
    assert torch.equal(quiet, sparse(x, x, x)[0]) and not torch.allclose(quiet, expected[0])


def test_gradients_reach_the_inputs() -> None:
    dense = _attention(add_bias_kv=True)
    sparse = SparseMultiheadAttention.from_dense(dense)
    grads = []
    for layer in (sparse, dense):
        torch.manual_seed(2)
        x = torch.randn(5, 2, E, requires_grad=True)
        layer(x, x, x)[0].square().sum().backward()
        grads.append((x.grad, layer.bias_k.grad, layer.in_proj_bias.grad))
    _close(*grads)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_bad_calls() -> None:
    sparse = SparseMultiheadAttention.from_dense(_attention())
    x = torch.randn(5, 2, E)
    with pytest.raises(RuntimeError, match="expected attn_mask beside is_causal"):
        sparse(x, x, x, is_causal=True)
    with pytest.raises(RuntimeError, match=r"expected attn_mask of shape \[5, 5\], got \[4, 5\]"):
        sparse(x, x, x, attn_mask=torch.zeros(4, 5))
    with pytest.raises(RuntimeError, match=r"expected key_padding_mask of shape \[2, 5\]"):
        sparse(x, x, x, key_padding_mask=torch.zeros(5, 2).bool())
    with pytest.raises(RuntimeError, match="to be boolean or floating point"):
        sparse(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="2 dimensions"):
        sparse(x, x[0], x[0])
    with pytest.raises(RuntimeError, match="as many tokens"):
        sparse(x, x, x[:3])
    with pytest.raises(RuntimeError, match="got a nested one"):
        nested = torch.nested.nested_tensor([torch.randn(3, E)])
        sparse(nested, nested, nested)
    with pytest.raises(TypeError, match=r"expected an nn\.MultiheadAttention, got Linear"):
        SparseMultiheadAttention.from_dense(nn.Linear(4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected in_proj and out_proj"):
        SparseMultiheadAttention(_attention(), {"out_proj": nn.Linear(E, E)})


# ---- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
def test_state_holds_one_buffer_a_packed_weight(separate: bool) -> None:
    dense = _attention(add_bias_kv=True)
    sparse = SparseMultiheadAttention.from_dense(dense, separate=separate)
    roles = ["q_proj", "k_proj", "v_proj"] if separate else ["in_proj"]
    assert set(sparse.state_dict()) == {
        "bias_k", "bias_v",
        *(f"{role}.{part}" for role in [*roles, "out_proj"] for part in ("packed", "bias")),
    }  # fmt: skip
    other = SparseMultiheadAttention.from_dense(_attention(add_bias_kv=True), separate=separate)
    other.load_state_dict(sparse.state_dict())
    x = torch.randn(5, 2, E)
    for twin in (other, copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(twin(x, x, x)[0], sparse(x, x, x)[0])


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("options", [
    {}, {"bias": False, "batch_first": True}, {"kdim": 10, "vdim": 14, "add_bias_kv": True},
], ids=str)  # fmt: skip
def test_to_dense_and_the_weights_that_others_read(options: Any, separate: bool) -> None:
    dense = _attention(**options)
    sparse = SparseMultiheadAttention.from_dense(dense, separate=separate)
    back = sparse.to_dense()
    assert repr(back) == repr(dense) and not back.training
    state = back.state_dict()
    assert state.keys() == dense.state_dict().keys()
    for name, tensor in dense.state_dict().items():
        assert torch.equal(state[name], tensor)
    for name in ("in_proj_weight", "q_proj_weight", "in_proj_bias"):
        ours, theirs = getattr(sparse, name), getattr(dense, name)
        assert ours is theirs is None or torch.equal(ours, theirs)
    assert "num_heads=4" in repr(sparse)


# ---- conversion --------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_each_projection_is_a_layer_of_the_report(inplace: bool) -> None:
    model = nn.ModuleDict({"attention": _attention()})
    dense = copy.deepcopy(model)
    sparse = convert_to_sparse(model, min_speedup=0, inplace=inplace)
    assert isinstance(sparse["attention"], SparseMultiheadAttention)
    assert isinstance(model["attention"], SparseMultiheadAttention) is inplace
    layers = {layer.name: layer for layer in report(sparse).layers}
    assert list(layers) == ["attention.in_proj", "attention.out_proj"]
    assert layers["attention.in_proj"].shape == [3 * E, E]
    for name, layer in layers.items():
        assert layer.is_sparse and layer.kind == "linear"
        assert isinstance(sparse.get_submodule(name), SparseLinear)
    x = torch.randn(5, 2, E)
    _same(sparse["attention"], dense["attention"], x, x, x)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_attention_of_two_names_and_one_as_the_root(inplace: bool) -> None:
    shared = _attention()
    x = torch.randn(5, 2, E)
    expected = shared(x, x, x)[0].detach()
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    sparse = convert_to_sparse(model, min_speedup=0, inplace=inplace)
    assert sparse["a"] is sparse["b"][0]
    found = {layer.name: layer.aliases for layer in report(sparse).layers}
    assert found == {"a.in_proj": ["b.0.in_proj"], "a.out_proj": ["b.0.out_proj"]}
    root = convert_to_sparse(shared, min_speedup=0, inplace=inplace)
    assert [layer.name for layer in report(root).layers] == ["in_proj", "out_proj"]
    for attention in (sparse["a"], root):
        _close(attention(x, x, x)[0], expected)


def test_frozen_projections_stay_frozen() -> None:
    model = nn.ModuleList([_attention(add_bias_kv=True).requires_grad_(False)])
    sparse = convert_to_sparse(model, min_speedup=0)
    assert isinstance(sparse[0], SparseMultiheadAttention)
    assert not any(parameter.requires_grad for parameter in sparse.parameters())


class Calls(nn.Module):
    """Calls an attention with as many different tensors as asked."""

    def __init__(self, attention: nn.Module, tensors: int) -> None:
        super().__init__()
        self.attention, self.tensors = attention, tensors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        others = [x, x + 1, x - 1][: self.tensors]
        return self.attention(x, others[-1], value=others[len(others) // 2])[0]


@pytest.mark.parametrize("tensors", [1, 2, 3])
def test_projections_are_measured_as_they_are_called(tensors: int) -> None:
    model = Calls(_attention(), tensors).eval()
    x = torch.randn(7, 2, E)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
    layers = report(sparse).layers
    roles = ["in_proj"] if tensors == 1 else ["q_proj", "k_proj", "v_proj"]
    assert [layer.name.rpartition(".")[2] for layer in layers] == [*roles, "out_proj"]
    assert all(layer.timing == "measured" and layer.N == [14] for layer in layers)
    _same(sparse, model, x)


def test_projections_that_stay_dense_beside_sparse_ones() -> None:
    dense = _attention(dropout=0.25, batch_first=True)
    dense.in_proj_weight.data[dense.in_proj_weight == 0] = 1.0  # no zeros left
    model = nn.Sequential(Calls(dense, 1)).eval()
    sparse = convert_to_sparse(model, min_speedup=1e-6)
    attention = sparse[0].attention
    assert type(attention.in_proj) is nn.Linear and isinstance(attention.out_proj, SparseLinear)
    reasons = {layer.name: layer.reason for layer in report(sparse).layers}
    assert reasons["0.attention.in_proj"] == "it has no zeros"
    assert attention.in_proj.weight.requires_grad
    assert attention.in_proj.weight.data_ptr() != dense.in_proj_weight.data_ptr()
    x = torch.randn(2, 7, E)
    _same(sparse, model, x)
    kept = convert_to_sparse(model, min_speedup=1e6)
    assert type(kept[0].attention) is nn.MultiheadAttention


def test_masks_and_parametrizations_of_the_projections() -> None:
    class Third(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * (weight > 0)

    masked, parametrized = _attention(), _attention()
    prune.l1_unstructured(masked, "in_proj_weight", amount=0.8)
    prune.l1_unstructured(masked.out_proj, "weight", amount=0.8)
    parametrize.register_parametrization(parametrized, "in_proj_weight", Third())
    x = torch.randn(5, 2, E)
    for dense in (masked, parametrized):
        expected = dense(x, x, x)[0].detach()
        sparse = convert_to_sparse(nn.Sequential(dense), min_speedup=0)[0]
        assert isinstance(sparse, SparseMultiheadAttention)
        assert not sparse._forward_pre_hooks
        _close(sparse(x, x, x)[0], expected)


def test_hooks_and_attributes_of_an_attention_move_along() -> None:
    model = nn.ModuleList([_attention()])
    model[0].note = "kept"
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    sparse = convert_to_sparse(model, min_speedup=0)
    x = torch.randn(5, 2, E)
    sparse[0](x, x, x)
    assert sparse[0].note == "kept" and calls == ["after"]


class OwnForward(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_attentions_that_stay_dense() -> None:
    shared = _attention()
    patched = _attention()
    patched.forward = patched.forward  # type: ignore[method-assign]
    tied = nn.ModuleDict({"a": _attention(), "b": _attention()})
    tied["b"].in_proj_weight = tied["a"].in_proj_weight
    other = _attention()
    shared.out_proj = other.out_proj
    extra = _attention()
    extra.register_buffer("scale", torch.ones(1))
    model = nn.ModuleDict({
        "own": OwnForward(E, 4), "patched": patched, "tied": tied, "shared": shared,
        "other": other, "extra": extra,
    })  # fmt: skip
    sparse = convert_to_sparse(model, min_speedup=0)
    reasons = {layer.name: layer.reason for layer in report(sparse).layers if not layer.is_sparse}
    assert "OwnForward of its attention has a forward" in reasons["own.in_proj"]
    assert "was replaced on the instance" in reasons["patched.out_proj"]
    assert "same Parameter as that of tied.b (MultiheadAttention)" in reasons["tied.a.in_proj"]
    assert "tied.a.out_proj" not in reasons
    assert "registered elsewhere" in reasons["shared.in_proj"]
    assert "registered elsewhere" in reasons["other.out_proj"]
    assert "carries more than torch's: scale" in reasons["extra.in_proj"]
    assert sparse["tied"]["a"].in_proj.weight.shape == (3 * E, E)


# ---- torch's transformers ----------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.functional.silu])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_encoder(activation: Any, norm_first: bool, batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(
        E, 4, 48, activation=activation, norm_first=norm_first, batch_first=batch_first
    )
    nested = batch_first and not norm_first and isinstance(activation, str)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    model = _pruned(model).eval()
    x = torch.randn(3, 3, E)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
    layers = report(sparse).layers
    assert len(layers) == 8 and all(found.is_sparse for found in layers)
    assert all(found.timing == "measured" for found in layers)
    padding = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]]).bool()
    kept = ~padding if batch_first else ~padding.t()
    causal = nn.Transformer.generate_square_subsequent_mask(3)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            _close(sparse(x), model(x))
            _close(sparse(x, mask=causal), model(x, mask=causal))
            padded = (part(x, src_key_padding_mask=padding) for part in (sparse, model))
            _close(*(y[kept] for y in padded))
    _close(sparse.layers[0](x[0]), model.layers[0](x[0]))


def test_encoder_in_training_draws_what_torch_draws() -> None:
    layer = nn.TransformerEncoderLayer(E, 4, 48, dropout=0.3)
    model = _pruned(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).train()
    sparse = convert_to_sparse(model, min_speedup=0)
    x = torch.randn(5, 2, E)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    _close(sparse(x), expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_fast_paths_stay_where_nothing_is_sparse(inplace: bool) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 4, 48, batch_first=True), 2).eval()
    model.layers[1].linear2.weight.data = sparse_weight((E, 48), 0.2)
    sparse = convert_to_sparse(model, min_speedup=1e-6, inplace=inplace)
    assert [layer.activation_relu_or_gelu for layer in sparse.layers] == [1, 0]
    assert type(sparse.layers[1].self_attn) is nn.MultiheadAttention
    assert not sparse.use_nested_tensor and model.use_nested_tensor is not inplace
    kept = convert_to_sparse(nn.TransformerEncoder(model.layers[0], 1), min_speedup=1e-6)
    assert kept.use_nested_tensor and kept.layers[0].activation_relu_or_gelu == 1


def test_decoder_and_whole_transformer() -> None:
    model = _pruned(nn.Transformer(E, 4, 1, 1, 48, batch_first=True)).eval()
    source, target = torch.randn(2, 5, E), torch.randn(2, 4, E)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    example = {"src": source, "tgt": target, "tgt_mask": causal, "tgt_is_causal": True}
    for inputs in (example, None):
        sparse = convert_to_sparse(model, example_inputs=inputs, min_speedup=0)
        names = [layer.name for layer in report(sparse).layers if layer.is_sparse]
        assert "decoder.layers.0.self_attn.in_proj" in names
        assert "decoder.layers.0.multihead_attn.k_proj" in names
        assert not any(isinstance(m, nn.Linear | nn.MultiheadAttention) for m in sparse.modules())
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                _close(sparse(**example), model(**example))


def test_an_encoder_layer_as_the_root() -> None:
    model = _pruned(nn.TransformerEncoderLayer(E, 4, 48, batch_first=True)).eval()
    sparse = convert_to_sparse(model, min_speedup=0)
    x = torch.randn(2, 5, E)
    with torch.no_grad():
        _close(sparse(x), model(x))
    again = convert_to_sparse(sparse, min_speedup=0)
    assert {layer.reason for layer in report(again).layers} == {"it was sparse already"}


def test_converted_attention_compiles_and_exports() -> None:
    model = _pruned(nn.TransformerEncoderLayer(E, 4, 48, batch_first=True)).eval()
    sparse = convert_to_sparse(model, min_speedup=0)
    x = torch.randn(2, 5, E)
    with torch.no_grad():
        expected = model(x)
        _close(torch.compile(sparse, fullgraph=True, backend="aot_eager")(x), expected)
        _close(torch.export.export(sparse, (x,)).module()(x), expected)
