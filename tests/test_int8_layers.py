"""Layers with int8 weights: exact sums, drop-in shapes and types, state, copies, compilers."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from int8_oracle import check_int8
from oracle import sparse_weight
from torch import nn

from sparseinfer import (
    SparseConv1d,
    SparseConv2d,
    SparseConvTranspose2d,
    SparseLinear,
    formats,
    load_converted,
    load_sparse,
    load_sparse_into,
    pack,
    save_sparse,
    to_dense,
    unpack,
)
from sparseinfer.quantize import ActivationScale, quantize_weight, scale_of_range, sqnr_db

SCALE = scale_of_range(-2.5, 3.0)

CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3),
    nn.Conv1d(4, 8, 5, stride=3, padding=4, dilation=2, groups=4, bias=False),
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2)),
    nn.Conv2d(4, 6, 2, padding="same"),
    nn.Conv2d(4, 6, 3, padding="valid"),
    nn.Conv2d(4, 8, 3, padding=2, groups=4, padding_mode="replicate"),
    nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
    nn.Conv2d(16, 24, 1),
]


def _sparse(dense: nn.Module, scale: ActivationScale | None = None, density: float = 0.4) -> Any:
    dense.weight.data = sparse_weight(dense.weight.shape, density)  # type: ignore[arg-type]
    classes = {nn.Linear: SparseLinear, nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d}
    return classes[type(dense)].from_dense(  # type: ignore[attr-defined]
        dense, weights="int8", input_scale=scale
    )


@pytest.mark.parametrize("scale", [None, SCALE, scale_of_range(0.0, 2.0)], ids=str)
@pytest.mark.parametrize(("m", "k"), [(8, 20), (1, 1), (33, 70), (64, 256)])
def test_linear(m: int, k: int, scale: ActivationScale | None) -> None:
    dense = nn.Linear(k, m)
    sparse = _sparse(dense, scale)
    for shape in ((k,), (1, k), (3, k), (2, 17, k), (65, k), (0, k)):
        x = torch.randn(shape)
        check_int8(sparse(x), x, dense, scale)
    x = torch.randn(k, 7).t()
    check_int8(sparse(x), x, dense, scale)
    assert sparse.format == "panel" and sparse.handle.info["value_type"] == "int8"


@pytest.mark.parametrize("dense", CONVOLUTIONS, ids=str)
def test_convolutions(dense: Any) -> None:
    sparse = _sparse(dense, SCALE)
    image = (15,) if isinstance(dense, nn.Conv1d) else (11, 14)
    for shape in ((2, dense.in_channels, *image), (dense.in_channels, *image)):
        x = torch.randn(shape)
        whole = x if len(shape) == len(image) + 2 else x.unsqueeze(0)
        y = sparse(x)
        check_int8(y if whole is x else y.unsqueeze(0), whole, dense, SCALE)
    empty = torch.randn(0, dense.in_channels, *image)
    assert sparse(empty).shape == dense(empty).shape


def test_values_beyond_the_range_are_clipped() -> None:
    dense = nn.Linear(8, 4)
    sparse, x = (
        _sparse(dense, SCALE),
        torch.tensor([[1e9, -1e9, 3.0, -2.5, 0.0, 1e-9, 50.0, -50.0]]),
    )
    check_int8(sparse(x), x, dense, SCALE)


def test_tokens_with_nan_or_inf_give_nan() -> None:
    dense = nn.Linear(8, 4)
    sparse, x = _sparse(dense), torch.randn(2, 3, 8)
    expected = sparse(x)
    x[0, 1, 2], x[1, 0, 7], x[1, 2, 0] = float("nan"), float("inf"), -float("inf")
    y = sparse(x)
    bad = torch.tensor([[False, True, False], [True, False, True]])
    assert y[bad].isnan().all() and torch.equal(y[~bad], expected[~bad])
    with pytest.raises(RuntimeError, match="expected inputs whose scales are at most"):
        sparse(torch.full((1, 8), 1e30))


def test_weights_are_rounded_by_rows() -> None:
    dense = nn.Linear(40, 16)
    sparse = _sparse(dense)
    expected = quantize_weight(dense.weight).dequantize()
    assert torch.equal(sparse.dense_weight(), expected)
    assert torch.equal(unpack(pack(dense.weight, weights="int8")), expected)
    assert isinstance(sparse.to_dense(), nn.Linear)
    assert torch.equal(sparse.to_dense().weight, expected)
    assert torch.equal(to_dense(nn.Sequential(sparse))[0].weight, expected)


def test_scales_of_others_are_kept() -> None:
    values = torch.randint(-100, 101, (6, 12)) * (torch.rand(6, 12) < 0.5)
    scales = torch.rand(6) + 0.5
    weight = values * scales.unsqueeze(1)
    packed = pack(weight, weights="int8", scales=scales)
    assert torch.equal(unpack(packed), weight)
    assert formats.info(packed)["nnz"] == int((values != 0).sum())


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations(activation: str) -> None:
    dense = nn.Linear(20, 8)
    plain = _sparse(dense, SCALE)
    sparse = SparseLinear.from_dense(dense, "panel", activation, input_scale=SCALE, weights="int8")
    x = torch.randn(5, 20)
    torch.testing.assert_close(sparse(x), getattr(nn.functional, activation)(plain(x)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [None, SCALE], ids=str)
def test_narrow_inputs(dtype: torch.dtype, scale: ActivationScale | None) -> None:
    sparse, x = _sparse(nn.Linear(32, 16), scale), torch.randn(4, 32).to(dtype)
    wide = sparse(x.float())
    moved = copy.deepcopy(sparse).to(dtype)
    y = moved(x)
    assert y.dtype is dtype and sqnr_db(wide, y) > 30
    # The scale is no value of the layer's type: the integers depend on it.
    assert moved.activation_scale == sparse.activation_scale
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sparse(x.float()).dtype is torch.bfloat16


# ---- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, SCALE], ids=str)
def test_state_copies_and_pickles(scale: ActivationScale | None) -> None:
    sparse, x = nn.Sequential(_sparse(nn.Linear(24, 10), scale)), torch.randn(3, 24)
    expected, state = sparse(x), sparse.state_dict()
    assert ("0.input_scale" in state) == (scale is not None)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=True)
    for other in (
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)),
        load_converted(nn.Sequential(nn.Linear(24, 10)), read),
        load_converted(nn.Sequential(nn.Linear(24, 10)), read, assign=True),
    ):
        assert torch.equal(other(x), expected) and other[0].activation_scale == scale


def test_states_of_other_types_cross_over() -> None:
    x, dense = torch.randn(3, 24), nn.Linear(24, 10)
    narrow, token, wide = _sparse(dense, SCALE), _sparse(dense), SparseLinear.from_dense(dense)
    state = {"int8": narrow.state_dict(), "token": token.state_dict(), "wide": wide.state_dict()}
    expected = {"int8": narrow(x), "token": token(x), "wide": wide(x)}
    for layer in (narrow, token, wide):
        for name in ("wide", "int8", "token", "int8", "wide"):
            layer.load_state_dict(state[name])
            assert torch.equal(layer(x), expected[name])
    layer = _sparse(nn.Linear(24, 10), SCALE)
    layer.load_state_dict(dense.state_dict())
    check_int8(layer(x), x, dense, SCALE)


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("input_scale", torch.tensor(0.0), "expected a scale of activations"),
        ("input_scale", torch.tensor(float("nan")), "expected a scale of activations"),
        ("input_scale", torch.ones(2), r"of one element, got \[2\]"),
        ("input_scale", 3, "of one element, got int"),
        ("input_zero_point", torch.tensor(256), "expected a zero point from 0 to 255"),
        ("input_zero_point", None, "of one element, got NoneType"),
    ],
)
def test_states_that_are_damaged(entry: str, value: Any, expected: str) -> None:
    sparse = _sparse(nn.Linear(24, 10), SCALE)
    state = {**sparse.state_dict(), entry: value}
    with pytest.raises(RuntimeError, match=expected):
        sparse.load_state_dict(state)


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_files_hold_what_the_integers_stand_for(name: str, tmp_path: Path) -> None:
    model, x = nn.Sequential(_sparse(nn.Linear(64, 32), SCALE, 0.2)), torch.randn(3, 64)
    saved = save_sparse(model, tmp_path / name, exact_layout=True)
    tensors = load_sparse(saved.path)
    assert set(tensors) == {"0.weight", "0.bias"}
    assert torch.equal(tensors["0.weight"], model[0].dense_weight())
    dense = load_sparse_into(nn.Sequential(nn.Linear(64, 32)), saved.path)
    again = SparseLinear.from_dense(dense[0], weights="int8", input_scale=SCALE)
    assert torch.equal(again(x), model(x))
    assert saved.path.exists() and save_sparse(model.state_dict(), tmp_path / "of_state").compressed


# ---- torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, SCALE], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_gradients_are_those_of_the_dequantised_layer(
    scale: ActivationScale | None, activation: str
) -> None:
    dense = nn.Linear(12, 6)
    dense.weight.data = sparse_weight(dense.weight.shape, 0.5)
    sparse: Any = SparseLinear.from_dense(
        dense, activation=activation, input_scale=scale, weights="int8"
    )
    x = torch.randn(4, 12, requires_grad=True)
    y = sparse(x)
    y.sum().backward()
    passed = torch.ones_like(y) if activation == "none" else (y > 0).float()
    torch.testing.assert_close(x.grad, passed @ sparse.dense_weight())
    torch.testing.assert_close(sparse.bias.grad, passed.sum(0))


def test_gradients_of_convolutions() -> None:
    dense = nn.Conv2d(4, 6, 3, padding=1, stride=2)
    sparse = _sparse(dense, SCALE)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    sparse(x).sum().backward()
    other = x.detach().clone().requires_grad_()
    sparse.to_dense()(other).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize(
    ("dense", "shape"), [(nn.Linear(24, 10), (3, 24)), (nn.Conv2d(4, 6, 3), (2, 4, 8, 8))], ids=str
)
def test_fake_tensors_have_the_right_shapes(dense: nn.Module, shape: tuple[int, ...]) -> None:
    layers = [_sparse(copy.deepcopy(dense), SCALE)]
    if isinstance(dense, nn.Linear):
        layers.append(_sparse(copy.deepcopy(dense)))
    for sparse in layers:
        x = torch.randn(shape)
        program = torch.export.export(nn.Sequential(sparse), (x,))
        assert torch.equal(program.module()(x), sparse(x))
        torch.library.opcheck(
            torch.ops.sparseinfer.linear_int8.default
            if isinstance(dense, nn.Linear)
            else torch.ops.sparseinfer.conv2d_int8.default,
            _arguments(layers[0], x),
        )


def _arguments(sparse: Any, x: torch.Tensor) -> tuple[Any, ...]:
    head = (x, sparse.packed, sparse.bias.detach(), sparse.input_scale, sparse.input_zero_point)
    if isinstance(sparse, SparseLinear):
        return (*head, sparse.out_features, "none", 1)
    return (*head, 6, [3, 3], [1, 1], [0] * 4, [1, 1], 1, "zeros", "none", 1)


@pytest.mark.slow
def test_compiled() -> None:
    model = nn.Sequential(_sparse(nn.Linear(24, 10), SCALE), nn.ReLU(), _sparse(nn.Linear(10, 4)))
    x = torch.randn(5, 24)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_repr_names_the_types() -> None:
    assert "weights=int8, input_scale=per token" in repr(_sparse(nn.Linear(20, 8)))
    assert f"weights=int8, input_scale={SCALE.scale}" in repr(_sparse(nn.Conv2d(4, 6, 3), SCALE))


# ---- bad input ---------------------------------------------------------------------------------


def test_calls_that_do_not_fit() -> None:
    sparse = _sparse(nn.Linear(20, 8), SCALE)
    with pytest.raises(RuntimeError, match="last dimension is 20, got shape"):
        sparse(torch.randn(3, 21))
    with pytest.raises(
        RuntimeError, match=r"float32, float16 or bfloat16 input .* got torch\.float64"
    ):
        sparse(torch.randn(3, 20).double())
    with pytest.raises(RuntimeError, match="expected a bias of the input's type"):
        sparse(torch.randn(3, 20).half())
    conv = _sparse(nn.Conv2d(4, 6, 3), SCALE)
    with pytest.raises(RuntimeError, match="channels"):
        conv(torch.randn(1, 5, 8, 8))
    conv.set_activation_scale(None)
    with pytest.raises(RuntimeError, match="expected the scale of the input beside an int8 weight"):
        conv(torch.randn(1, 4, 8, 8))
    wide = SparseLinear.from_dense(nn.Linear(20, 8))
    wide.set_activation_scale(SCALE)
    with pytest.raises(RuntimeError, match="expected an int8 weight, got float32"):
        wide(torch.randn(3, 20))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_cannot_be_rounded(bad: float) -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data[1, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        SparseLinear.from_dense(layer, weights="int8")


def test_layers_without_int8_kernels() -> None:
    with pytest.raises(ValueError, match="SparseConvTranspose2d, got 'int8'"):
        SparseConvTranspose2d.from_dense(nn.ConvTranspose2d(4, 4, 2), weights="int8")
    with pytest.raises(ValueError, match="expected an input_scale for int8 weights alone"):
        SparseLinear.from_dense(nn.Linear(4, 4), input_scale=SCALE)
    with pytest.raises(ValueError, match="expected scales for int8 weights alone"):
        pack(torch.eye(4), scales=torch.ones(4))
    for format in ("csr", "nm", "bsr"):
        with pytest.raises(ValueError, match="int8"):
            pack(torch.eye(16), format, weights="int8", **({"n": 4} if format == "nm" else {}))


@pytest.mark.parametrize("scale", [0.5, (0.5, 3), torch.tensor(0.5)], ids=str)
def test_input_scales_of_other_types(scale: Any) -> None:
    with pytest.raises(TypeError, match="expected an ActivationScale, got"):
        SparseLinear.from_dense(nn.Linear(4, 4), weights="int8", input_scale=scale)


def test_too_many_columns_for_int32() -> None:
    with pytest.raises(ValueError, match="65535"):
        pack(torch.ones(1, 65536), weights="int8")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_has_the_dequantised_weights(dynamo: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(
        _sparse(nn.Conv2d(4, 6, 3, padding=1), SCALE), nn.Flatten(), _sparse(nn.Linear(96, 8)),
        nn.ReLU(), _sparse(nn.Linear(8, 4), SCALE),
    ).eval()  # fmt: skip
    x, file = torch.randn(2, 4, 4, 4), io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=dynamo)
    session = onnxruntime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = to_dense(model)(x).detach()
    torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-4, atol=1e-4)
