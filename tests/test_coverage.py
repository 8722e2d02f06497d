"""Which layers of a stranger's model are found, tied, wrapped or left, and what the report says."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from transformers.pytorch_utils import Conv1D

from sparseinfer import SparseConv2d, SparseLinear, convert_to_sparse, formats, report
from sparseinfer.convert.layer_report import LayerReport
from sparseinfer.formats.stand_in import ReadOnly
from sparseinfer.layers.linear_conv import SparseLayer


def _prune(model: nn.Module, density: float = 0.3) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | Conv1D):
            module.weight.data *= torch.rand(module.weight.shape) < density
    return model.eval()


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _layers(model: nn.Module) -> dict[str, LayerReport]:
    return {layer.name: layer for layer in report(model).layers}


# ---- transformers ------------------------------------------------------------------------------


def test_conv1d_of_transformers() -> None:
    layer = _prune(Conv1D(12, 20))
    layer.bias.data.normal_()
    model = nn.Sequential(layer)
    x = torch.randn(2, 3, 20)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
    (found,) = report(sparse).layers
    assert found.kind == "linear" and found.shape == [12, 20] and found.timing == "measured"
    assert isinstance(sparse[0], SparseLinear) and (sparse[0].nf, sparse[0].nx) == (12, 20)
    _close(sparse(x), model(x))
    dense = sparse[0].to_dense()
    assert type(dense) is nn.Linear and torch.equal(dense.weight, layer.weight.t())
    assert dense.weight.is_contiguous()
    prune.l1_unstructured(layer, "weight", amount=0.9)
    _close(convert_to_sparse(model, min_speedup=0)(x), model(x))


def test_a_conv1d_with_a_forward_of_its_own_stays_dense() -> None:
    class Scaled(Conv1D):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    kept = convert_to_sparse(nn.Sequential(Scaled(4, 4)), min_speedup=0)
    assert "Scaled has a forward of its own" in _layers(kept)["0"].reason


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys, torch, sparseinfer\n"
        "sparseinfer.convert_to_sparse(torch.nn.Linear(4, 4), min_speedup=0)\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _logits(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_gpt2_with_its_tied_head() -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=60, n_positions=16)
    model = _prune(transformers.GPT2LMHeadModel(config))
    ids = {"input_ids": torch.randint(0, 60, (2, 9))}
    sparse = convert_to_sparse(model, example_inputs=ids, min_speedup=0)
    layers = _layers(sparse)
    assert sum(layer.is_sparse for layer in layers.values()) == 8
    assert layers["lm_head"].reason == (
        "its weight is the same Parameter as that of transformer.wte (Embedding)"
    )
    assert sparse.lm_head.weight is sparse.transformer.wte.weight
    _close(_logits(sparse, **ids), _logits(model, **ids))
    with torch.no_grad():
        generated = [m.generate(ids["input_ids"][:1], max_new_tokens=4) for m in (sparse, model)]
    assert torch.equal(*generated)


def test_t5_reads_the_weight_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4, vocab_size=50
    )
    model = _prune(transformers.T5ForConditionalGeneration(config))
    ids = torch.randint(0, 50, (2, 7))
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    sparse = convert_to_sparse(model, example_inputs=inputs, min_speedup=0)
    assert isinstance(sparse.encoder.block[0].layer[1].DenseReluDense.wo, SparseLinear)
    _close(_logits(sparse, **inputs), _logits(model, **inputs))
    read: list[str] = []
    unpack = formats.unpack
    monkeypatch.setattr(formats, "unpack", lambda packed: read.append("") or unpack(packed))
    _logits(sparse, **inputs)
    assert not read


def test_reading_about_a_weight_unpacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseConv2d.from_dense(dense := nn.Conv2d(4, 6, 3))
    unpacked = []
    unpack = formats.unpack
    monkeypatch.setattr(formats, "unpack", lambda packed: unpacked.append(1) or unpack(packed))
    weight = layer.weight
    assert isinstance(weight, torch.Tensor) and len(weight) == 6
    assert weight.dtype is torch.float32 and weight.is_floating_point()
    assert weight.device == dense.weight.device and not weight.is_cuda and not weight.is_meta
    assert weight.shape == weight.size() == dense.weight.shape and weight.size(1) == 4
    assert weight.ndim == weight.dim() == 4 and weight.numel() == dense.weight.numel()
    assert not weight.requires_grad and not unpacked
    assert torch.equal(weight, dense.weight) and unpacked


@pytest.mark.parametrize("use", [
    lambda w: w.numpy().copy(), lambda w: w.tolist(), lambda w: w + 1, lambda w: 1 - w,
    lambda w: w[0, 1], lambda w: w.to(torch.float64), lambda w: w.clone(), lambda w: w.data,
    lambda w: copy.deepcopy(w), lambda w: pickle.loads(pickle.dumps(w)), lambda w: repr(w.detach()),
    lambda w: torch.cat([w, w]), lambda w: nn.functional.linear(torch.ones(2, 5), w),
    lambda w: nn.Parameter(w.clone()), lambda w: [float(row.sum()) for row in w],
    lambda w: torch.ones_like(w), lambda w: w.t().contiguous(), lambda w: w.norm(),
    lambda w: w @ w.t(),
])  # fmt: skip
def test_a_weight_is_a_tensor_in_every_use(use: Any) -> None:
    dense = nn.Linear(5, 3)
    layer = SparseLinear.from_dense(dense)
    ours, expected = use(layer.weight), use(dense.weight.detach())
    assert type(ours) in (type(expected), ReadOnly)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, expected)
    elif isinstance(ours, str | list):
        assert ours == expected
    else:
        assert (ours == expected).all()


# ---- layers without a kernel -------------------------------------------------------------------


class Custom(nn.Module):
    """A matrix product that no table knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))
        self.position = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize(("layer", "pruned", "full"), [
    (nn.Conv3d(2, 2, 3), "there is no sparse kernel for nn.Conv3d", True),
    (nn.Embedding(8, 8), "a lookup multiplies nothing, so zeros save it no time", True),
    (nn.EmbeddingBag(8, 8), "a lookup multiplies nothing, so zeros save it no time", False),
    (nn.Bilinear(4, 4, 4), "there is no sparse kernel for nn.Bilinear", False),
    (nn.ConvTranspose3d(2, 2, 3), "there is no sparse kernel for nn.ConvTranspose3d", False),
    (Custom(), "there is no sparse kernel for Custom", False),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_layers_without_a_kernel(layer: Any, pruned: str, full: bool) -> None:
    model = nn.Sequential(layer)
    layer.weight.data.fill_(1.0)
    assert ("0" in _layers(model)) is full
    layer.weight.data[0] = 0.0
    for found in (_layers(model)["0"], _layers(convert_to_sparse(model, min_speedup=0))["0"]):
        assert found.reason == pruned and found.format == "dense" and found.sparsity > 0
        assert found.kind == type(layer).__name__.lower()
        assert found.shape == list(layer.weight.shape)
    prune.random_unstructured(layer, "weight", amount=0.5)
    assert _layers(convert_to_sparse(model, min_speedup=0))["0"].sparsity >= 0.5


def test_a_parametrized_layer_without_a_kernel_is_read_as_it_takes_effect() -> None:
    class Positive(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight.relu()

    model = nn.Sequential(nn.Conv3d(2, 2, 3), Custom())
    for layer in model:
        parametrize.register_parametrization(layer, "weight", Positive())
    layers = _layers(model)
    assert list(layers) == ["0", "1"] and 0 < layers["0"].sparsity < 1
    assert layers["0"].reason.endswith("nn.Conv3d") and layers["1"].reason.endswith("for Custom")


def test_each_pruned_matrix_of_a_cell_is_listed() -> None:
    model = nn.ModuleDict({"cell": nn.RNNCellBase(4, 4, bias=True, num_chunks=1)})
    model["cell"].weight_hh.data[0] = 0.0
    assert list(_layers(model)) == ["cell.weight_hh"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_layers_are_listed() -> None:
    quantized = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    model = nn.Sequential(quantized.Linear(8, 8), nn.Linear(8, 8))
    x = torch.randn(2, 8)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
    assert _layers(sparse)["0"].reason.startswith("it is quantized already")
    assert isinstance(sparse[1], SparseLinear)
    _close(sparse(x), model(x))


class Tagged(torch.Tensor):
    """A tensor that is not torch's own."""


def test_weights_that_are_no_plain_tensors_stay() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("tagged", "plain")})
    model["tagged"].weight = nn.Parameter(torch.eye(8).as_subclass(Tagged))
    sparse = convert_to_sparse(model, min_speedup=0, inplace=True)  # torch copies no Tagged
    layers = _layers(sparse)
    assert layers["tagged"].reason == "its weight is no plain tensor (Tagged, strided)"
    assert isinstance(sparse["plain"], SparseLinear)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_left_alone() -> None:
    model = nn.Sequential(torch.jit.trace(nn.Linear(8, 8), torch.randn(2, 8)), nn.Linear(8, 8))
    sparse = convert_to_sparse(model, min_speedup=0)
    assert isinstance(sparse[1], SparseLinear)
    x = torch.randn(2, 8)
    _close(sparse(x), model(x))


# ---- tied layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_that_share_a_parameter_stay_tied(inplace: bool) -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    kept = convert_to_sparse(model, min_speedup=0, inplace=inplace)
    assert kept["a"].weight is kept["b"].weight and isinstance(kept["c"], SparseLinear)
    assert copy.deepcopy(kept)["a"].weight is not kept["a"].weight
    layers = _layers(kept)
    assert layers["a"].reason == "its weight is the same Parameter as that of b (Linear)"
    assert layers["b"].reason == "its weight is the same Parameter as that of a (Linear)"


@pytest.mark.parametrize("inplace", [False, True])
def test_a_bias_of_several_modules_stays_theirs(inplace: bool) -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.BatchNorm1d(8)})
    model["a"].bias.requires_grad_(False)
    model["b"].bias = model["c"].bias = model["a"].bias
    sparse = convert_to_sparse(model, min_speedup=0, inplace=inplace)
    assert isinstance(sparse["a"], SparseLinear) and isinstance(sparse["b"], SparseLinear)
    assert sparse["a"].bias is sparse["b"].bias is sparse["c"].bias
    assert (sparse["a"].bias is model["a"].bias) is inplace
    assert not sparse["a"].bias.requires_grad


def test_a_module_registered_twice_stays_one() -> None:
    shared = _prune(nn.Linear(8, 8))
    model = nn.ModuleDict({"a": shared, "deep": nn.ModuleList([nn.ModuleDict({"b": shared})])})
    sparse = convert_to_sparse(model, min_speedup=0)
    assert sparse["a"] is sparse["deep"][0]["b"]
    (found,) = report(sparse).layers
    assert (found.name, found.aliases) == ("a", ["deep.0.b"])
    state = sparse.state_dict()
    assert state["a.packed"].data_ptr() == state["deep.0.b.packed"].data_ptr()
    twin = copy.deepcopy(sparse)
    twin.load_state_dict(state)
    assert twin["a"] is twin["deep"][0]["b"]


# ---- containers, wrappers, parametrizations ----------------------------------------------------


def test_nested_containers_and_a_root_that_is_a_layer() -> None:
    model = nn.ModuleDict({"list": nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])})
    model["list"].append(nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3)}))
    sparse = convert_to_sparse(model, min_speedup=0)
    assert isinstance(sparse["list"][0][0], SparseLinear)
    assert isinstance(sparse["list"][1]["conv"], SparseConv2d)
    assert isinstance(convert_to_sparse(nn.Conv2d(2, 2, 3), min_speedup=0), SparseConv2d)


def test_a_subclass_with_the_plain_forward_is_converted() -> None:
    layer = nn.modules.linear.NonDynamicallyQuantizableLinear(8, 8)
    assert isinstance(convert_to_sparse(layer, min_speedup=0), SparseLinear)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wrap", [
    parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal
])  # fmt: skip
def test_norm_parametrizations(wrap: Any, training: bool) -> None:
    model = nn.Sequential(wrap(nn.Linear(8, 8)), nn.ReLU(), wrap(nn.Linear(8, 4))).train(training)
    state = copy.deepcopy(model.state_dict())
    sparse = convert_to_sparse(model, example_inputs=torch.randn(2, 8), min_speedup=0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert isinstance(sparse[0], SparseLinear) and isinstance(sparse[2], SparseLinear)
    x = torch.randn(3, 8)
    _close(sparse.eval()(x), model.eval()(x))


def test_norms_by_hook_stay_dense() -> None:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)))
    assert "computed by a hook" in _layers(convert_to_sparse(model, min_speedup=0))["0"].reason


def test_a_lazy_layer_stays_and_says_why() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 8))
    for example in (None, torch.randn(2, 8)):
        kept = convert_to_sparse(model, example_inputs=example, min_speedup=0)
        assert "uninitialized parameter; try running" in _layers(kept)["0"].reason
        assert isinstance(kept[0], nn.Linear) and isinstance(kept[1], SparseLinear)
    # The example gave it its shape.
    assert isinstance(convert_to_sparse(model, min_speedup=0)[0], SparseLinear)


def test_data_parallel() -> None:
    model = nn.DataParallel(_prune(nn.Sequential(nn.Linear(8, 8))))
    sparse = convert_to_sparse(model, min_speedup=0)
    assert isinstance(sparse, nn.DataParallel) and isinstance(sparse.module[0], SparseLinear)
    x = torch.randn(2, 8)
    _close(sparse(x), model(x))


@pytest.mark.filterwarnings("ignore")
def test_compiled_and_scripted_models_are_refused() -> None:
    compiled = torch.compile(nn.Sequential(nn.Linear(8, 8)), backend="eager")
    with pytest.raises(TypeError, match=r"got one compiled by torch\.compile.*model\._orig_mod"):
        convert_to_sparse(compiled)
    for scripted in (
        torch.jit.script(nn.Linear(8, 8)), torch.jit.trace(nn.Linear(8, 8), torch.randn(2, 8))
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"got a TorchScript.*before torch\.jit"):
            convert_to_sparse(scripted)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_part_is_compiled_no_more(inplace: bool) -> None:
    model = _prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    model[0].compile(backend="eager")
    x = torch.randn(2, 8)
    expected = model(x)
    sparse = convert_to_sparse(model, min_speedup=0, inplace=inplace)
    assert all(isinstance(layer, SparseLayer) for layer in sparse)
    assert sparse[0]._compiled_call_impl is None
    _close(sparse(x), expected)


def test_a_compiled_model_inside_another_is_converted() -> None:
    inner = _prune(nn.Sequential(nn.Linear(8, 8)))
    model = nn.Sequential(torch.compile(inner, backend="eager"), nn.Linear(8, 8)).eval()
    x = torch.randn(2, 8)
    expected = model(x)
    for inplace in (False, True):
        sparse = convert_to_sparse(model, min_speedup=0, inplace=inplace)
        assert not any(type(module) is nn.Linear for module in sparse.modules())
        _close(sparse(x), expected)
