"""Sparse transposed convolutions do what torch's do: shapes, values, state, gradients."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import C_FLOAT32, EPS, sparse_weight
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseinfer import (
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    convert_to_sparse,
    formats,
    load_converted,
    load_sparse,
    report,
    save_sparse,
)
from sparseinfer.layers.kinds import kind_named
from sparseinfer.timing import tuning
from sparseinfer.timing.measure import Comparison

LAYERS = [
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose1d(4, 6, 16, stride=8, padding=4),
    nn.ConvTranspose1d(4, 8, 5, stride=3, padding=2, output_padding=2, groups=4, bias=False),
    nn.ConvTranspose1d(4, 6, 2, stride=5),
    nn.ConvTranspose2d(4, 6, 2, stride=2),
    nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 8, (3, 5), stride=(1, 3), padding=(0, 2), output_padding=(0, 1)),
    nn.ConvTranspose2d(4, 8, 3, stride=2, dilation=(1, 3), output_padding=(0, 2), groups=2),
    nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=4),
    nn.ConvTranspose2d(4, 6, 1, padding=1),
    nn.ConvTranspose2d(4, 6, 2, stride=3, padding=3),
]


def _sparse(dense: Any, density: float = 0.4, format: str = "panel") -> Any:
    dense.weight.data = sparse_weight(dense.weight.shape, density)
    cls = SparseConvTranspose1d if dense.weight.dim() == 3 else SparseConvTranspose2d
    return cls.from_dense(dense, format)


def _check(y: Tensor, x: Tensor, dense: Any, output_size: list[int] | None = None) -> None:
    """Within the float32 bound of the float64 result, in torch's shape and strides."""
    exact, size = copy.deepcopy(dense).double(), copy.deepcopy(dense).double()
    for parameter in size.parameters():
        parameter.data.abs_()
    with torch.no_grad():
        expected = dense(x, output_size)
        error = (y.double() - exact(x.double(), output_size)).abs()
        terms = dense.weight[:, 0].numel() // dense.groups
        bound = C_FLOAT32 * (terms + 1) * EPS * size(x.double().abs(), output_size)
    assert y.shape == expected.shape and y.stride() == expected.stride()
    assert (error <= bound).all()


@pytest.mark.parametrize("dense", LAYERS, ids=str)
def test_as_torch(dense: Any) -> None:
    image = (9,) if dense.weight.dim() == 3 else (7, 9)
    for format in ("panel", "csr"):
        sparse = _sparse(dense, format=format)
        for shape in ((2, 4, *image), (4, *image), (0, 4, *image)):
            x = torch.randn(shape)
            with torch.no_grad():
                _check(sparse(x), x, dense)
        assert torch.equal(sparse.dense_weight(), dense.weight)
        assert torch.equal(sparse.weight, dense.weight)
        assert sparse.nnz == int((dense.weight != 0).sum())
    back = sparse.to_dense()
    assert repr(back) == repr(dense)
    assert torch.equal(back(input=x), dense(x))


@hypothesis.given(data=st.data())
def test_drawn(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))

    def drawn(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(least, most)) for _ in range(axes))

    groups = data.draw(st.sampled_from((1, 1, 2, 4)))
    kernel, stride, padding, dilation = drawn(1, 5), drawn(1, 4), drawn(0, 5), drawn(1, 3)
    most = [max(sizes) - 1 for sizes in zip(stride, dilation, strict=True)]
    spare = tuple(data.draw(st.integers(0, size)) for size in most)
    cls = nn.ConvTranspose1d if axes == 1 else nn.ConvTranspose2d
    dense: Any = cls(
        4, 2 * groups, kernel, stride, padding, spare, groups, data.draw(st.booleans()), dilation
    )  # type: ignore[arg-type]
    sparse = _sparse(dense)
    batch = data.draw(st.sampled_from(((), (0,), (1,), (2,))))
    x = torch.randn(*batch, 4, *drawn(1, 9))
    least = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, s, p, d, k in zip(x.shape[-axes:], stride, padding, dilation, kernel, strict=True)
    ]
    wanted = [n + data.draw(st.integers(-1, s)) for n, s in zip(least, stride, strict=True)]
    for size in (None, wanted):
        with torch.no_grad():
            try:
                expected = dense(x, size)
            except (RuntimeError, ValueError) as refused:
                with pytest.raises(type(refused)):
                    sparse(x, size)
                continue
            if 0 in expected.shape[-axes:]:  # torch gives those for batches of no images
                with pytest.raises(RuntimeError, match="too small"):
                    sparse(x, size)
                continue
            _check(sparse(x, size), x, dense, size)


def test_every_output_size() -> None:
    dense = nn.ConvTranspose2d(4, 6, 3, stride=(3, 2), padding=1)
    sparse = _sparse(dense)
    x = torch.randn(2, 4, 5, 6)
    for size in itertools.product((13, 14, 15), (11, 12)):
        for given in (size, (2, 6, *size), torch.Size(size)):
            y = sparse(x, output_size=given)
            torch.testing.assert_close(y, dense(x, output_size=given), rtol=1e-5, atol=1e-5)
            assert y.is_contiguous()
    assert sparse(x[0], list(size)).shape == dense(x[0], list(size)).shape
    for wrong in ((16, 12), (12, 12)):
        for layer in (dense, sparse):
            with pytest.raises(ValueError, match="requested an output size of"):
                layer(x, output_size=wrong)
    with pytest.raises(ValueError, match="output_size of 2 or 4 elements"):
        sparse(x, output_size=(13, 11, 1))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 5, 9, 9), "to have 4 channels, but got 5 channels instead"),
        ((4, 9), r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv_transpose2d"),
        ((2, 4, 0, 9), "too small"),
    ],
)
def test_inputs_that_do_not_fit(shape: tuple[int, ...], text: str) -> None:
    dense = nn.ConvTranspose2d(4, 6, 3)
    sparse = _sparse(dense)
    with pytest.raises(RuntimeError):
        dense(torch.ones(shape))
    with pytest.raises(RuntimeError, match=text):
        sparse(torch.ones(shape))
    with pytest.raises(RuntimeError, match=r"Input type \(Double\)"):
        sparse(torch.ones(2, 4, 9, 9).double())


def test_geometry_that_torch_refuses() -> None:
    with pytest.raises(ValueError, match="zeros"):
        SparseConvTranspose1d(4, 6, 3, padding_mode="reflect")
    with pytest.raises(ValueError, match="groups"):
        SparseConvTranspose2d(4, 6, 3, groups=4)
    layer = SparseConvTranspose1d(4, 6, 3, stride=2, output_padding=2)
    with pytest.raises(RuntimeError, match="output padding must be smaller"):
        layer(torch.ones(1, 4, 5))


def test_a_new_layer_computes_its_bias() -> None:
    layer = SparseConvTranspose2d(4, 6, 3, stride=2, groups=2)
    layer.bias.data = torch.randn(6)
    y = layer(torch.randn(1, 4, 3, 3))
    assert torch.equal(y, layer.bias.view(1, 6, 1, 1).expand_as(y))


def test_activation_is_fused() -> None:
    dense = nn.ConvTranspose1d(4, 6, 4, stride=2)
    sparse = SparseConvTranspose1d.from_dense(dense, activation="gelu")
    x = torch.randn(2, 4, 7)
    torch.testing.assert_close(sparse(x), nn.functional.gelu(dense(x)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse.to_dense()(x), sparse(x), rtol=1e-5, atol=1e-5)


def test_gradients() -> None:
    dense = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    sparse = _sparse(dense)
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    weights = torch.randn(2, 6, 10, 12)
    grads = []
    for layer in (dense, sparse):
        (layer(x) * weights).sum().backward()
        grads.append((x.grad, layer.bias.grad))
        x.grad = None
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied: Any) -> None:
    sparse = _sparse(nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1))
    x = torch.randn(2, 4, 7)
    assert torch.equal(copied(sparse)(x), sparse(x))


def test_state() -> None:
    dense = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)
    sparse = _sparse(dense)
    assert sorted(sparse.state_dict()) == ["bias", "packed"]
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    x = torch.randn(1, 4, 5, 5)
    fresh = SparseConvTranspose2d(4, 6, 4, stride=2, padding=1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), sparse(x))
    of_dense = SparseConvTranspose2d(4, 6, 4, stride=2, padding=1)
    of_dense.load_state_dict(dense.state_dict())
    assert torch.equal(of_dense(x), sparse(x))
    with pytest.raises(RuntimeError, match=r"expected a packed weight of shape \[24, 4, 3, 3\]"):
        fresh.load_state_dict({**sparse.state_dict(), "packed": formats.pack(torch.eye(4))})


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_compile_and_export(stride: int) -> None:
    sparse = _sparse(nn.ConvTranspose2d(4, 6, 4, stride=stride, padding=1))
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 4, 5, 6), (3, 4, 7, 5)):
        x = torch.randn(shape, requires_grad=True)
        compiled(x).square().sum().backward()
        ours, x.grad = x.grad, None
        sparse(x).square().sum().backward()
        torch.testing.assert_close(ours, x.grad, rtol=1e-5, atol=1e-5)
        assert torch.equal(compiled(x), sparse(x))
    x = x.detach()
    program = torch.export.export(sparse, (x,))
    assert torch.equal(program.module()(x), sparse(x))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_narrow_types(stride: int) -> None:
    dense = nn.ConvTranspose2d(4, 6, 4, stride=stride, padding=1)
    sparse = _sparse(dense)
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            y = sparse(x)
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y.float(), dense(x), rtol=2e-2, atol=2e-2)
        y = copy.deepcopy(sparse).half()(x.half())
        assert y.dtype is torch.float16
        torch.testing.assert_close(y.float(), dense(x.half().float()), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transforms(stride: int) -> None:
    dense = nn.ConvTranspose1d(4, 6, 4, stride=stride, padding=1)
    sparse = _sparse(dense)
    x, tangent = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    torch.testing.assert_close(torch.func.vmap(sparse)(x), sparse(x))
    ours, expected = (torch.func.jvp(layer, (x,), (tangent,)) for layer in (sparse, dense))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_repr_names_what_matters() -> None:
    text = repr(_sparse(nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), 0.0))
    for part in ("4, 6", "stride=(2, 2)", "output_padding=(1, 1)", "density=0", "format=panel"):
        assert part in text


# ---- the packed weight -------------------------------------------------------------------------


@pytest.mark.parametrize("dense", LAYERS, ids=str)
def test_every_tap_is_packed_once(dense: Any) -> None:
    dense.weight.data = torch.arange(1.0, dense.weight.numel() + 1).view(dense.weight.shape)
    cls = SparseConvTranspose1d if dense.weight.dim() == 3 else SparseConvTranspose2d
    stored = formats.unpack(cls.from_dense(dense).packed)
    kept = stored[stored != 0]
    assert torch.equal(kept.sort().values, dense.weight.detach().flatten())


def test_a_packed_weight_of_another_geometry_is_refused() -> None:
    # The same packed shape, with the taps at other places.
    other = _sparse(nn.ConvTranspose1d(2, 2, 4, stride=2, padding=2), 1.0)
    layer = SparseConvTranspose1d(2, 2, 3, stride=2, padding=1)
    assert other.packed_shape == layer.packed_shape
    with pytest.raises(RuntimeError, match="zeros where no tap of the kernel is, got 4 non-zeros"):
        layer.load_state_dict(other.state_dict())


def test_weight_tells_its_shape_without_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = _sparse(nn.ConvTranspose2d(4, 6, 3, stride=2))
    with monkeypatch.context() as patched:
        patched.setattr(formats, "unpack", None)
        assert sparse.weight.shape == (4, 6, 3, 3) and sparse.weight.dtype is torch.float32
    assert float(sparse.weight.sum()) == float(sparse.dense_weight().sum())


# ---- conversion --------------------------------------------------------------------------------


class UNet(nn.Module):
    """One level of a U-Net: the way up asks for the size of what it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x).relu(), output_size=x.shape)


def _generator() -> nn.Module:
    """A small DCGAN."""
    return nn.Sequential(
        nn.ConvTranspose2d(16, 12, 4, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
    ).eval()  # fmt: skip


def _vocoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(8, 16, 3, padding=1), nn.LeakyReLU(),
        nn.ConvTranspose1d(16, 8, 8, stride=4, padding=2), nn.LeakyReLU(),
    )  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), [
    (_generator, (2, 16, 1, 1)), (UNet, (2, 3, 9, 12)), (_vocoder, (2, 8, 10)),
])  # fmt: skip
def test_networks_convert(make: Any, shape: tuple[int, ...]) -> None:
    model = make()
    for layer in model.modules():
        if hasattr(layer, "transposed"):
            prune.l1_unstructured(layer, "weight", amount=0.8)
    x = torch.randn(shape)
    expected = model(x)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
    assert not any(hasattr(layer, "weight_orig") for layer in sparse.modules())
    torch.testing.assert_close(sparse(x), expected, rtol=1e-5, atol=1e-5)
    kinds = [layer.kind for layer in report(sparse).layers if layer.is_sparse]
    assert kinds == [layer.kind for layer in report(model).layers]
    assert any(kind.startswith("convtranspose") for kind in kinds)
    loaded = load_converted(make().eval(), sparse.state_dict())
    torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5)


def test_the_model_of_the_cost_counts_the_interleaving() -> None:
    plain = kind_named("conv2d").worst_estimate(64, 64, density=0.1)
    transposed = kind_named("convtranspose2d").worst_estimate(64, 64, density=0.1)
    assert transposed.N == 784 and 0 < transposed.speedup < plain.speedup
    model = nn.Sequential(nn.ConvTranspose2d(48, 64, 2, stride=2))
    model[0].weight.data = sparse_weight((48, 64, 2, 2), 0.05)
    (layer,) = report(convert_to_sparse(model, threads=1)).layers
    assert layer.timing == "modelled" and layer.format == "dense"


def test_report() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2))
    prune.l1_unstructured(model[0], "weight", amount=0.75)
    x = torch.randn(3, 4, 5, 7)
    (found,) = report(convert_to_sparse(model, example_inputs=x, min_speedup=0)).layers
    assert (found.kind, found.shape, found.nnz) == ("convtranspose2d", [4, 3, 4, 4], 48)
    assert (found.sparsity, found.pattern) == (0.75, "unstructured")
    assert found.format == "panel" and found.timing == "measured" and found.speedup is not None
    assert found.N == [3 * 10 * 14] and found.dense_bytes == 4 * 192
    kept = convert_to_sparse(model, example_inputs=x, min_speedup=1e9)
    assert isinstance(kept[0], nn.ConvTranspose2d)
    assert "less than the 1e+09x asked" in report(kept).layers[0].reason
    (guessed,) = report(convert_to_sparse(model)).layers
    assert guessed.timing == "modelled"
    (already,) = report(SparseConvTranspose2d(4, 6, 4, groups=2)).layers
    assert (already.kind, already.shape, already.nnz) == ("convtranspose2d", [4, 3, 4, 4], 0)


@pytest.mark.parametrize("cls", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_the_overhead_of_a_small_call_is_told(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(0.020, 0.022), (0.004, 0.010)])

    def compare(dense: Any, sparse: Any, **_: Any) -> Comparison:
        assert dense().shape == sparse().shape
        dense_ms, sparse_ms = next(seen)
        speedup = dense_ms / sparse_ms
        return Comparison(dense_ms, sparse_ms, speedup, speedup, speedup, 8)

    monkeypatch.setattr(tuning, "compare", compare)
    model = nn.Sequential(cls(4, 4, 2, stride=2))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    x = torch.randn(1, 4, *[3] * (model[0].weight.dim() - 2))
    (layer,) = report(convert_to_sparse(model, example_inputs=x, cache=False)).layers
    assert layer.reason.endswith(
        "6 us more than a dense one's, exceeds the 4 us that the kernel gains"
    )


@pytest.mark.parametrize("dim", [0, 1])
def test_channels_pruned_whole(dim: int) -> None:
    """Dimension 0 is the inputs and dimension 1 the outputs, unlike in a convolution."""
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1))
    prune.ln_structured(model[0], "weight", amount=0.5, n=2, dim=dim)
    x = torch.randn(2, 8, 5, 6)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0)
    torch.testing.assert_close(sparse(x), model(x), rtol=1e-5, atol=1e-5)
    assert report(sparse).layers[0].pattern == f"channel: 4 {('inputs', 'rows')[dim]}"
    empty = (sparse[0].dense_weight() == 0).flatten(2).all(dim=2).all(dim=1 - dim)
    assert int(empty.sum()) == 4


def test_layers_with_other_arithmetic_stay() -> None:
    class Cropped(nn.ConvTranspose1d):
        def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
            return super().forward(input, output_size)[..., :-1]

    class Padded(nn.ConvTranspose1d):
        def _output_padding(self, *args: Any, **kwargs: Any) -> list[int]:
            return [1]

    for layer in (Cropped(4, 4, 2), Padded(4, 4, 2, stride=2)):
        kept = convert_to_sparse(nn.Sequential(layer), min_speedup=0)
        assert type(kept[0]) is type(layer)
        assert "has a forward of its own" in report(kept).layers[0].reason
    unknown = nn.Sequential(nn.ConvTranspose1d(4, 4, 2), nn.LazyConvTranspose1d(4, 2))
    kept = convert_to_sparse(unknown, min_speedup=0)
    assert isinstance(kept[0], SparseConvTranspose1d)
    assert isinstance(kept[1], nn.LazyConvTranspose1d)


def test_saved_as_dense(tmp_path: Any) -> None:
    dense = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1))
    dense[0].weight.data = sparse_weight((4, 6, 4, 4), 0.1)
    save_sparse(convert_to_sparse(dense, min_speedup=0), tmp_path)
    assert torch.equal(load_sparse(tmp_path)["0.weight"], dense[0].weight)
