"""convert_to_sparse: what is replaced, what is left alone, and why."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import nn
from torch.nn.utils import parametrize, prune

import sparseinfer
from sparseinfer import SparseConv2d, SparseLinear, api, convert_to_sparse, formats, report
from sparseinfer.layers.kinds import kind_named
from sparseinfer.layers.linear_conv import SparseLayer
from sparseinfer.timing import cost, tuning
from sparseinfer.timing.measure import compare


def _prune(model: nn.Module, density: float = 0.1) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.weight.data = sparse_weight(module.weight.shape, density)
    return model


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def _reasons(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.reason for layer in report(model).layers}


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inplace", [False, True])
def test_converts_and_computes_the_same(inplace: bool) -> None:
    model = _prune(_network()).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0, inplace=inplace)
    assert (sparse is model) is inplace
    assert isinstance(sparse[0], SparseConv2d) and isinstance(sparse[4], SparseLinear)
    assert isinstance(model[0], SparseConv2d) is inplace
    _close(sparse(x), expected)


@pytest.mark.parametrize("example", [
    torch.randn(2, 8), (torch.randn(2, 8),), {"input": torch.randn(2, 8)}, [torch.randn(2, 8)],
    [(torch.randn(2, 8),), {"input": torch.randn(5, 8)}, torch.randn(2, 8)],
], ids=["tensor", "tuple", "dict", "list", "mixed"])  # fmt: skip
def test_forms_of_example_inputs(example: Any) -> None:
    sparse = convert_to_sparse(_prune(nn.Linear(8, 8), 0.5), example_inputs=example, min_speedup=0)
    assert isinstance(sparse, SparseLinear)
    (layer,) = report(sparse).layers
    assert layer.timing == "measured" and layer.speedup is not None and layer.dense_ms > 0
    assert layer.N == ([5, 2] if "5x8" in layer.inputs else [2]) or layer.N == [2, 5]


def test_bad_arguments() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(TypeError, match=r"expected an nn.Module, got OrderedDict"):
        convert_to_sparse(model.state_dict())  # type: ignore[arg-type]
    known = ", ".join(formats.FORMATS)
    with pytest.raises(ValueError, match=f"expected a format of {known}, got 'none'"):
        convert_to_sparse(model, formats=["none"])
    with pytest.raises(ValueError, match="min_speedup >= 0"):
        convert_to_sparse(model, min_speedup=-1)
    with pytest.raises(ValueError, match="min_speedup >= 0"):
        convert_to_sparse(model, min_speedup=float("nan"))
    with pytest.raises(ValueError, match="threads >= 1"):
        convert_to_sparse(model, threads=0)
    with pytest.raises(ValueError, match="empty list"):
        convert_to_sparse(model, example_inputs=[])
    with pytest.raises(TypeError, match="got int"):
        convert_to_sparse(model, example_inputs=3)


def test_min_speedup_decides() -> None:
    model = _prune(nn.Sequential(nn.Linear(512, 512)), 0.02)
    x = torch.randn(256, 512)
    # No machine is so busy that the one is not reached, and none so quick that the other is.
    lenient = convert_to_sparse(model, example_inputs=x, min_speedup=1e-6)
    assert isinstance(lenient[0], SparseLinear)
    assert "measured" in report(lenient).layers[0].reason
    strict = convert_to_sparse(model, example_inputs=x, min_speedup=1e6)
    assert type(strict[0]) is nn.Linear
    (layer,) = report(strict).layers
    assert "measured" in layer.reason and "less than the 1e+06x asked" in layer.reason
    assert layer.candidates[0].format == "panel" and layer.candidates[0].packed_bytes > 0


def test_the_cost_model_decides_without_inputs() -> None:
    model = nn.Sequential(
        _prune(nn.Linear(1024, 1024), 0.05), _prune(nn.Linear(16, 16), 0.05),
        _prune(nn.Linear(1024, 1024), 0.9), nn.Linear(1024, 1024),
    )  # fmt: skip
    sparse = convert_to_sparse(model)
    assert [type(layer) for layer in sparse] == [SparseLinear] + 3 * [nn.Linear]
    layers = report(sparse).layers
    assert [layer.timing for layer in layers] == ["modelled"] * 3 + [""]
    assert layers[0].inputs.endswith("assumed") and layers[0].N
    assert layers[3].reason == "it has no zeros"


def test_cost_model_is_monotonic() -> None:
    for n in (1, 4, 128):
        gains = [cost.estimate(768, 768, n, density).speedup for density in (0.0, 0.1, 0.5, 1.0)]
        assert gains == sorted(gains, reverse=True)
    with pytest.raises(ValueError, match="density of 0 to 1"):
        cost.estimate(8, 8, 1, 1.5)


RESULTS = sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_cost_model_errs_to_the_dense_side(path: Path) -> None:
    """Where it says that a layer gains, the layers that were measured gained, at every N."""
    rows = [row for row in json.loads(path.read_text())["rows"] if row["contender"] == "module"]
    assert rows
    for row in rows:
        kind = kind_named("linear" if row["op"] == "linear" else "conv2d")
        density = 1 - row["sparsity"]
        guess = kind.worst_estimate(row["m"], row["k"], density, row["threads"])
        assert guess.speedup < 1.05 or row["speedup"]["q3"] > 1, row["case"]


def test_forced_formats() -> None:
    model = _prune(nn.Sequential(nn.Linear(64, 32), nn.Conv2d(4, 4, 3)), 0.5)
    model[1].weight.data = sparse_weight((4, 4, 3, 3), 1.0, nm=(2, 4))
    for name in ("csr", "panel"):
        sparse = convert_to_sparse(model, formats=name, min_speedup=0)
        assert [layer.format for layer in sparse] == [name, name]
    sparse = convert_to_sparse(model, formats=("nm",), min_speedup=0)
    assert type(sparse[0]) is nn.Linear and sparse[1].format == "nm"
    linear, conv = report(sparse).layers
    assert linear.format == "dense" and linear.reason.startswith("nm: ")
    assert conv.pattern == "2:4"
    both = convert_to_sparse(
        nn.Sequential(model[0]), formats=["csr", "panel"], min_speedup=0,
        example_inputs=torch.randn(64, 64),
    )  # fmt: skip
    tried = report(both).layers[0].candidates
    assert [candidate.format for candidate in tried] == ["csr", "panel"]
    assert both[0].format == max(tried, key=lambda candidate: candidate.certain).format


class _Mixed(nn.Module):
    """A convolution, a recurrence and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.linears = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(torch.relu(self.conv(x)).transpose(1, 2))
        return self.linears(y)


def test_values_as_bfloat16() -> None:
    """Every sparse layer rounds its weights, and then computes in float32 what they give."""
    model = _Mixed().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand_like(parameter) < 0.3
    x = torch.randn(2, 8, 50)
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16().float()
    for example in (None, x):
        sparse = convert_to_sparse(
            model,
            example_inputs=example,
            min_speedup=0,
            verify=False,
            cache=False,
            weights="bfloat16",
        )
        stored = [name for name in sparse.state_dict() if name.endswith("packed")]
        assert len(stored) == 5
        for name in stored:
            assert formats.info(sparse.state_dict()[name])["value_type"] == "bfloat16"
        torch.testing.assert_close(sparse(x), rounded(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected weights of .*, got 'half'"):
        convert_to_sparse(model, weights="half")


def test_the_former_name_of_weights() -> None:
    model, options = _prune(nn.Linear(64, 64), 0.3), {"min_speedup": 0, "cache": False}
    with pytest.warns(DeprecationWarning, match="try weights='bfloat16'"):
        former = convert_to_sparse(model, value_type="bfloat16", **options)
    now = convert_to_sparse(model, weights="bfloat16", **options)
    assert torch.equal(former.packed, now.packed)
    with pytest.raises(NotImplementedError, match=r"int4 and float32.* not built yet"):
        convert_to_sparse(model, weights="int4")
    with pytest.raises(NotImplementedError, match="int16 activations"):
        convert_to_sparse(model, weights="int8", activations="int16")


def test_what_panel_cannot_store_falls_to_csr() -> None:
    model = _prune(nn.Linear(65540, 2), 0.01)
    sparse = convert_to_sparse(model, min_speedup=0)
    assert sparse.format == "csr"
    x = torch.randn(1, 65540)
    _close(sparse(x), model(x))


# ---- masks and parametrizations ----------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_masks_attached(inplace: bool) -> None:
    model = _network()
    prune.l1_unstructured(model[0], "weight", amount=0.8)
    prune.random_structured(model[4], "weight", amount=0.5, dim=0)
    prune.l1_unstructured(model[4], "bias", amount=5)
    x = torch.randn(2, 3, 8, 8)
    model.eval()
    expected = model(x)
    sparse = convert_to_sparse(model, min_speedup=0, inplace=inplace)
    assert isinstance(sparse[0], SparseConv2d) and isinstance(sparse[4], SparseLinear)
    _close(sparse(x), expected)
    assert not sparse[0]._forward_pre_hooks
    assert set(sparse[4].state_dict()) == {"packed", "bias"}
    if not inplace:
        assert model[0].weight.grad_fn is not None
        assert torch.equal(model(x), expected)


def test_masks_attached_to_layers_that_stay_dense() -> None:
    model = prune.l1_unstructured(nn.Linear(16, 16), "weight", amount=0.5)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    x = torch.randn(2, 16)
    expected = model(x)
    kept = convert_to_sparse(model, min_speedup=1e6)
    assert type(kept) is nn.Linear and kept.weight_orig is not model.weight_orig
    assert torch.equal(kept(x), expected)
    kept(x).sum().backward()
    assert kept.weight_orig.grad is not None and model.weight_orig.grad is None


def test_masks_without_their_hook() -> None:
    model = prune.l1_unstructured(nn.Linear(16, 16), "weight", amount=0.5)
    x = torch.randn(2, 16)
    expected = model(x)
    model._forward_pre_hooks.clear()
    _close(convert_to_sparse(model, min_speedup=0)(x), expected)


def test_parametrizations() -> None:
    class Mask(nn.Module):
        def __init__(self, mask: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.mask

    model = nn.Sequential(nn.Linear(16, 16), nn.Conv2d(2, 4, 3))
    for layer in model:
        mask = (torch.rand(layer.weight.shape) < 0.3).float()
        parametrize.register_parametrization(layer, "weight", Mask(mask))
    sparse = convert_to_sparse(model, min_speedup=0)
    assert [type(layer) for layer in sparse] == [SparseLinear, SparseConv2d]
    assert torch.equal(sparse[0].weight, model[0].weight)


def test_torch_ao_sparsifier() -> None:
    pruning = pytest.importorskip("torch.ao.pruning")
    model = nn.Sequential(nn.Linear(32, 32))
    sparsifier = pruning.WeightNormSparsifier(
        sparsity_level=0.5, sparse_block_shape=(1, 4), zeros_per_block=4
    )
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparse = convert_to_sparse(model, min_speedup=0)
    assert report(sparse).layers[0].pattern == "block 1x4"
    x = torch.randn(3, 32)
    _close(sparse(x), model(x))


# ---- what is left alone ------------------------------------------------------------------------


class OwnForward(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


class Renamed(nn.Linear):
    """A subclass that computes what nn.Linear does."""


def _patched() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def _with_buffer() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.register_buffer("scale", torch.ones(8))
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (OwnForward(8, 8), "its class test_convert.OwnForward has a forward of its own"),
        (_patched(), "its forward was replaced on the instance"),
        (_with_buffer(), "it carries more than weight and bias: scale"),
        (nn.Linear(8, 8).double(), "its weight is float64"),
        (nn.Linear(8, 8).double(), "its weight is float64"),
        (nn.LazyLinear(8), "got an uninitialized parameter"),
        (nn.Linear(8, 8, device="meta"), "meta device"),
        (nn.utils.weight_norm(nn.Linear(8, 8)), "computed by a hook"),
        (nn.Linear(0, 8), "no elements"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_that_stay_dense(layer: nn.Module, reason: str) -> None:
    model = nn.ModuleDict({"layer": layer})
    kept = convert_to_sparse(model, min_speedup=0)
    assert type(kept["layer"]) is type(layer)
    assert reason in _reasons(kept)["layer"]


def test_a_subclass_without_a_forward_of_its_own_is_converted() -> None:
    assert isinstance(convert_to_sparse(Renamed(8, 8), min_speedup=0), SparseLinear)


def test_attention_and_transformer_layers_keep_working() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = _prune(nn.TransformerEncoder(layer, 2)).eval()
    x = torch.randn(2, 5, 32)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
            _close(sparse(x), model(x))
    assert all(layer.is_sparse for layer in report(sparse).layers)


def test_tied_parameters_stay_dense() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(32, 16), "head": nn.Linear(16, 32)})
    model["head"].weight = model["embedding"].weight
    kept = convert_to_sparse(model, min_speedup=0)
    assert kept["head"].weight is kept["embedding"].weight
    assert _reasons(kept)["head"] == (
        "its weight is the same Parameter as that of embedding (Embedding)"
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_shared_modules_stay_shared(inplace: bool) -> None:
    layer = _prune(nn.Linear(16, 16))
    model = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    x = torch.randn(2, 16)
    expected = model(x)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0, inplace=inplace)
    assert isinstance(sparse[0], SparseLinear) and sparse[2][0] is sparse[0]
    (found,) = report(sparse).layers
    assert (found.name, found.aliases) == ("0", ["2.0"])
    _close(sparse(x), expected)


def test_layers_the_inputs_never_reach() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = _prune(nn.Linear(8, 8)), _prune(nn.Linear(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    x = torch.randn(2, 8)
    kept = convert_to_sparse(Half(), example_inputs=x)
    assert "never reach it" in _reasons(kept)["unused"]
    assert isinstance(
        convert_to_sparse(Half(), example_inputs=x, min_speedup=0).unused, SparseLinear
    )


class _Casting(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_inputs_of_another_dtype_stay_dense() -> None:
    model = _Casting(nn.Linear(8, 8), _prune(nn.Linear(8, 8)))
    kept = convert_to_sparse(model, example_inputs=torch.randn(2, 8), min_speedup=0)
    assert "its inputs are bfloat16" in _reasons(kept)["1"]


def test_a_model_is_converted_as_it_runs_under_autocast() -> None:
    model = _prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    x = torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
        assert sparse(x).dtype is torch.bfloat16
        torch.testing.assert_close(sparse(x), model(x), rtol=0.05, atol=0.05)
    assert all(isinstance(layer, SparseLinear) for layer in sparse)


def test_a_converted_model_is_left_as_it_is() -> None:
    model = _prune(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    once = convert_to_sparse(nn.Sequential(model[0]), min_speedup=0)
    model[0] = once[0]
    twice = convert_to_sparse(model, min_speedup=0, inplace=True)
    assert twice[0] is once[0] and isinstance(twice[1], SparseLinear)
    assert _reasons(twice)["0"] == "it was sparse already"


def test_non_finite_weights_are_kept_and_reported() -> None:
    model = _prune(nn.Sequential(nn.Linear(16, 4)))
    model[0].weight.data[2, 3] = float("nan")
    model[0].weight.data[1, 0] = float("inf")
    sparse = convert_to_sparse(model, min_speedup=0)
    (layer,) = report(sparse).layers
    assert layer.nonfinite == 2 and "2 NaN or Inf weights, kept" in layer.reason
    y = sparse(torch.ones(1, 16))[0]
    assert y[2].isnan() and y[1] == float("inf") and y[[0, 3]].isfinite().all()


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_fully_zero_and_fully_dense(density: float) -> None:
    model = _prune(_network(), density).eval()
    x = torch.randn(1, 3, 8, 8)
    _close(convert_to_sparse(model, example_inputs=x, min_speedup=0)(x), model(x))


# ---- what moves along --------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_flags_and_attributes_move_along(inplace: bool) -> None:
    model = _prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    model[0].eval()
    model[0].note = {"kept": True}
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    handle = model[0].register_forward_pre_hook(
        lambda module, args, kwargs: calls.append("before"), with_kwargs=True
    )
    sparse = convert_to_sparse(model, min_speedup=0, inplace=inplace)
    assert not sparse[0].training and sparse[1].training and sparse.training
    assert sparse[0].note == {"kept": True}
    sparse(torch.randn(2, 8))
    assert calls == ["before", "after"]
    if inplace:
        handle.remove()
        sparse(torch.randn(2, 8))
        assert calls == ["before", "after", "after"]


def test_the_model_is_not_disturbed() -> None:
    model = _prune(_network()).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    convert_to_sparse(model, example_inputs=torch.randn(2, 3, 8, 8))
    drawn = torch.rand(1)
    torch.manual_seed(1)
    torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    sparse = convert_to_sparse(
        _prune(nn.Linear(8, 8)), example_inputs=torch.randn(2, 8), threads=1, min_speedup=0
    )
    assert torch.get_num_threads() == before and report(sparse).threads == 1


def test_progress_is_silent_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    model = _prune(nn.Linear(8, 8))
    convert_to_sparse(model)
    assert capfd.readouterr() == ("", "")
    convert_to_sparse(model, progress=True)
    assert "converting" in capfd.readouterr().err


def test_decisions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="sparseinfer"):
        convert_to_sparse(_prune(nn.Sequential(nn.Linear(8, 8))))
    assert any(message.startswith("0: dense") for message in caplog.messages)


def test_compare_stops_when_decided() -> None:
    result = compare(lambda: sum(range(5000)), lambda: None, threshold=1.05, budget_s=30)
    assert result.speedup > 2 and result.low <= result.speedup <= result.high


def test_package_surface() -> None:
    assert all(hasattr(sparseinfer, name) for name in api.__all__)
    assert isinstance(sparseinfer.__version__, str)
    assert issubclass(SparseLinear, SparseLayer)


def test_the_random_state_is_left_alone() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = _prune(nn.Linear(32, 32), 0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.layer(x), 0.5, True)

    model, x = Drawing(), torch.ones(2, 32)
    before = torch.get_rng_state()
    convert_to_sparse(model, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), before)


# ---- packed for the tokens that come -------------------------------------------------------------


class _Writes(nn.Module):
    """What transformers' models are to a conversion: they have a `generate`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def generate(self) -> None:
        raise NotImplementedError


def _wide(outputs: int = 64) -> nn.Linear:
    layer = nn.Linear(768, outputs)
    layer.weight.data = sparse_weight((outputs, 768), 0.2)
    return layer


def _of_tokens(model: nn.Module, examples: Any, **options: Any) -> nn.Module:
    settings: dict[str, Any] = {"min_speedup": 0, "verify": False, "budget_s": 0.3, "cache": False}
    return convert_to_sparse(model, example_inputs=examples, **settings | options)


@pytest.mark.parametrize(
    ("wrap", "shapes", "kblock"),
    [
        (nn.Sequential, [(33, 768)], formats.MANY_TOKENS),
        (nn.Sequential, [(2, 20, 768), (64, 768)], formats.MANY_TOKENS),
        (nn.Sequential, [(32, 768)], formats.BY_SHAPE),
        (nn.Sequential, [(64, 768), (1, 768)], formats.BY_SHAPE),
        (nn.Sequential, [(768,)], formats.BY_SHAPE),
        (_Writes, [(64, 768)], formats.BY_SHAPE),
        (lambda layer: nn.Sequential(_Writes(layer)), [(64, 768)], formats.BY_SHAPE),
    ],
    ids=["33", "40 and 64", "32", "64 and 1", "a vector", "generates", "holds what generates"],
)
def test_a_layer_is_packed_for_its_fewest_tokens(wrap: Any, shapes: Any, kblock: int) -> None:
    layer = _wide()
    model = _of_tokens(wrap(layer), [torch.randn(shape) for shape in shapes])
    (sparse,) = (module for module in model.modules() if isinstance(module, SparseLinear))
    assert torch.equal(sparse.packed, formats.pack(layer.weight, kblock=kblock))


def test_projections_of_an_attention_are_packed_for_their_tokens() -> None:
    attention = nn.MultiheadAttention(768, 4, batch_first=True)
    attention.out_proj.weight.data = sparse_weight((768, 768), 0.2)
    weight = attention.out_proj.weight.detach().clone()
    x = torch.randn(2, 40, 768)
    model = _of_tokens(attention, (x, x, x))
    (sparse,) = (m for m in model.modules() if isinstance(m, SparseLinear) and m.nnz < 768 * 768)
    assert torch.equal(sparse.packed, formats.pack(weight, kblock=formats.MANY_TOKENS))


def test_packing_is_by_shape_where_nothing_was_seen() -> None:
    layer = _wide()
    sparse = _of_tokens(nn.Sequential(layer), None)[0]
    assert isinstance(sparse, SparseLinear)
    assert torch.equal(sparse.packed, formats.pack(layer.weight))


def test_timings_tell_the_two_packings_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[tuning.ProblemKey] = []
    monkeypatch.setattr(tuning.Tuner, "keep", lambda self, problem, *_: problems.append(problem))
    layer, x = _wide(), torch.randn(64, 768)
    for model in (nn.Sequential(layer), _Writes(layer)):
        _of_tokens(model, x)
    packed = {problem["params"]["kblock"] for problem in problems if "layer" in problem}
    assert packed == {formats.MANY_TOKENS, formats.BY_SHAPE}
