"""Every registry row that runs here, against the float64 oracle."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import check_conv, check_linear, packed_along_columns, sparse_weight
from torch import Tensor

from sparseinfer import pack
from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels import registry
from sparseinfer.kernels.activations import ACTIVATIONS
from sparseinfer.kernels.contract import PADDING_MODES
from sparseinfer.ops.run_conv import conv_cpu, conv_cuda
from sparseinfer.ops.run_linear import linear_cpu

WIDTHS = (4, 8, 16, 64, 96)
AROUND = sorted({w + d for w in WIDTHS for d in (-1, 0, 1)} | {1, 2, 6})
DENSITIES = (0.0, 0.1, 0.5, 1.0)
CANARY = 1234.5
GUARD = 128
"""Floats of canary before and after an output."""


def _rows(op: str) -> list[Any]:
    """Those of single float values; test_int8_conformance.py and test_bf16.py have the others."""
    rows = (
        row
        for row in registry.rows()
        if row.op == op and not {"int8", registry.PAIRS} & set(row.weight_types)
    )
    return [pytest.param(row, id=row.name) for row in rows]


@pytest.fixture
def row(request: pytest.FixtureRequest) -> registry.Row:
    reasons = request.param.machine_reasons()
    if reasons:
        pytest.skip("; ".join(reasons))
    return request.param


linear_rows = pytest.mark.parametrize("row", _rows("linear"), indirect=True)
conv_rows = pytest.mark.parametrize("row", _rows("conv"), indirect=True)


def _weight(row: registry.Row, shape: tuple[int, ...], density: float, **options: Any) -> Tensor:
    nm = (2, 4) if row.format == "nm" and density < 1 else None
    return sparse_weight(shape, density, nm=nm, **options)


def _pack(row: registry.Row, weight: Tensor, groups: int = 1) -> Tensor:
    params = {}
    if row.format == "nm":
        full = all((group != 0).sum(dim=1).max() <= 2 for group in weight.split(4, dim=1))
        params = {"n": 2 if full else 4, "m": 4}
    return pack(weight, row.format, groups, **params)


def _linear(
    row: registry.Row, x: Tensor, packed: Tensor, m: int, bias: Tensor | None = None,
    activation: str = "none", threads: int = 1, channel_major: bool = False, shift: int = 0,
) -> Tensor:  # fmt: skip
    """Run a row into NaN-filled memory between canaries, `shift` floats past an aligned address."""
    n = x.shape[0]
    if row.native_id is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        from sparseinfer.ops.run_linear import linear_cuda

        b = None if bias is None else bias.to(device)
        forced = row if row.least <= n <= (row.most or n) else None
        y = linear_cuda(x.to(device), packed.to(device), b, m, activation, row=forced)
        return y.cpu()
    source = x.T if channel_major else x
    memory_x = torch.empty(source.numel() + shift)
    memory_x[shift:] = source.reshape(-1)
    memory_y = torch.full((n * m + 2 * GUARD,), CANARY)
    y = memory_y[GUARD + shift : GUARD + shift + n * m].fill_(float("nan"))
    handle = open_packed(packed)
    handle.weights.linear(
        memory_x[shift:].data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(), n,
        *((n, n) if channel_major else (x.shape[1], m)), channel_major, activation, row.native_id,
        threads,
    )  # fmt: skip
    assert (memory_y[: GUARD + shift] == CANARY).all()
    assert (memory_y[GUARD + shift + n * m :] == CANARY).all()
    return y.view(m, n).T if channel_major else y.view(n, m)


@linear_rows
@pytest.mark.parametrize("density", DENSITIES)
def test_linear_at_every_n(row: registry.Row, density: float) -> None:
    for m, k in ((5, 37), (8, 64)):
        weight = _weight(row, (m, k), density)
        packed = _pack(row, weight)
        for n in (0, 3, 5, 7, 9, *AROUND):
            x = torch.randn(n, k)
            check_linear(_linear(row, x, packed, m), x, weight)


@linear_rows
def test_linear_at_every_m_and_k(row: registry.Row) -> None:
    densities = itertools.cycle(DENSITIES)
    for k, m in itertools.product(AROUND, (1, 2, 3, 4, 6, 7)):
        weight = _weight(row, (m, k), next(densities))
        packed = _pack(row, weight)
        for n in (1, 17):
            x = torch.randn(n, k)
            check_linear(_linear(row, x, packed, m), x, weight)


@linear_rows
def test_linear_channel_major_and_misaligned(row: registry.Row) -> None:
    if row.native_id is None:
        pytest.skip("Triton rows take token-major tensors only")
    weight = _weight(row, (10, 50), 0.3)
    packed = _pack(row, weight)
    for n, channel_major, shift in itertools.product((1, 2, 7, 33, 100), (False, True), (0, 1, 3)):
        x = torch.randn(n, 50)
        y = _linear(row, x, packed, 10, channel_major=channel_major, shift=shift)
        check_linear(y, x, weight)


@pytest.mark.sampled(40)
@linear_rows
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_bias_and_activation(row: registry.Row, activation: str) -> None:
    weight = _weight(row, (9, 40), 0.4)
    packed = _pack(row, weight)
    for n, bias in itertools.product((1, 6, 20, 70), (None, torch.randn(9))):
        x = 3 * torch.randn(n, 40)
        y = _linear(row, x, packed, 9, bias, activation)
        check_linear(y, x, weight, bias, activation)


@linear_rows
def test_linear_is_exact_on_small_integers(row: registry.Row) -> None:
    weight = _weight(row, (21, 130), 0.5, integers=True)
    packed = _pack(row, weight)
    for n in (1, 4, 16, 97):
        x = torch.randint(-8, 9, (n, 130)).float()
        assert torch.equal(_linear(row, x, packed, 21), x @ weight.T)


@linear_rows
def test_linear_one_thread_equals_many(row: registry.Row) -> None:
    if row.native_id is None:
        pytest.skip("threads have no meaning on a GPU")
    weight = _weight(row, (130, 300), 0.2)
    packed = _pack(row, weight)
    for n in (1, 8, 200):
        x = torch.randn(n, 300)
        one = _linear(row, x, packed, 130, threads=1)
        for threads in (2, 3, 7):
            assert torch.equal(_linear(row, x, packed, 130, threads=threads), one)


@linear_rows
def test_linear_empty_rows(row: registry.Row) -> None:
    weight = _weight(row, (12, 33), 0.5)
    weight[[0, 4, 5, 6, 7, 11]] = 0
    bias = torch.randn(12)
    x = torch.randn(19, 33)
    y = _linear(row, x, _pack(row, weight), 12, bias)
    assert torch.equal(y[:, 4:8], bias[4:8].expand(19, 4))
    check_linear(y, x, weight, bias)


@linear_rows
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_linear_nan_and_inf_pass_through_kept_weights(row: registry.Row, value: float) -> None:
    weight = _weight(row, (6, 20), 0.0)
    weight[3, 7] = 2.0
    packed = _pack(row, weight)
    for activation, n in itertools.product(("none", "relu", "relu6"), (1, 5, 40)):
        x = torch.randn(n, 20)
        x[n // 2, 7] = value
        y = _linear(row, x, packed, 6, activation=activation)
        expected = {"relu6": torch.tensor(6.0)}.get(activation, torch.tensor(value))
        if value != value:
            expected = torch.tensor(value)
        assert torch.equal(y[n // 2, 3].isnan(), expected.isnan())
        if not expected.isnan():
            assert y[n // 2, 3] == expected


# ---- convolution -------------------------------------------------------------------------------

# batch, groups, input and output channels a group, image, kernel, stride, padding, dilation, mode
GEOMETRIES = [
    (1, 1, 3, 5, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "zeros"),
    (2, 1, 16, 8, (7, 7), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), "zeros"),
    (1, 1, 4, 4, (14, 14), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), "zeros"),
    (3, 1, 4, 6, (9, 11), (5, 5), (3, 3), (2, 2, 2, 2), (1, 1), "reflect"),
    (1, 1, 3, 7, (23, 23), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), "zeros"),
    (1, 1, 2, 3, (10, 13), (2, 2), (1, 1), (0, 1, 0, 1), (1, 1), "zeros"),
    (1, 2, 3, 4, (12, 12), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), "replicate"),
    (2, 8, 1, 1, (9, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "zeros"),
    (1, 4, 1, 2, (9, 9), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), "circular"),
    (1, 1, 4, 4, (6, 8), (3, 1), (2, 1), (1, 1, 0, 0), (1, 3), "zeros"),
    (1, 1, 2, 2, (5, 5), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1), "zeros"),
    (1, 1, 2, 2, (1, 1), (1, 1), (3, 3), (0, 0, 0, 0), (1, 1), "zeros"),
    (1, 1, 2, 2, (5, 5), (1, 1), (2, 2), (1, 0, 0, 2), (1, 1), "zeros"),
    (2, 1, 5, 6, (40,), (3,), (1,), (1, 1), (1,), "zeros"),
    (2, 1, 5, 6, (41,), (4,), (2,), (1, 2), (3,), "reflect"),
    (1, 3, 2, 2, (17,), (5,), (3,), (4, 4), (1,), "circular"),
]  # fmt: skip


def _conv(
    row: registry.Row, x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any
) -> Tensor:
    if row.native_id is not None:
        return conv_cpu(x, packed, bias, *options, row=row.native_id)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    b = None if bias is None else bias.to(device)
    return conv_cuda(x.to(device), packed.to(device), b, *options, row=row).cpu()


def _check_geometry(
    row: registry.Row, geometry: tuple[Any, ...], density: float = 0.4, bias: bool = True,
    activation: str = "none", threads: int = 1,
) -> None:  # fmt: skip
    batch, groups, c, m, image, kernel, stride, padding, dilation, mode = geometry
    weight = _weight(row, (m * groups, c, *kernel), density)
    b = torch.randn(m * groups) if bias else None
    x = torch.randn(batch, c * groups, *image)
    arguments = (
        row, x, _pack(row, weight, groups), b, m * groups, kernel, stride, padding, dilation,
        groups, mode, activation, threads,
    )  # fmt: skip
    problem = registry.Problem("conv", row.format, torch.device(row.device), groups=groups)
    if reasons := row.unsupported_reasons(problem):
        with pytest.raises(RuntimeError, match=re.escape(reasons[-1])):
            _conv(*arguments)
        return
    y = _conv(*arguments)
    check_conv(y, x, weight, b, stride, padding, dilation, groups, mode, activation)


@pytest.mark.sampled(70)
@conv_rows
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv_geometries(row: registry.Row, geometry: tuple[Any, ...]) -> None:
    for density in DENSITIES:
        _check_geometry(row, geometry, density, bias=density > 0)


@pytest.mark.parametrize("row", [r for r in _rows("conv") if r.id.startswith("nm.")], indirect=True)
def test_convolutions_packed_along_columns_still_run(row: registry.Row) -> None:
    for geometry in GEOMETRIES:
        batch, groups, c, m, image, kernel, stride, padding, dilation, mode = geometry
        shape = m * groups, c, *kernel
        weight = sparse_weight((m * groups, c * math.prod(kernel)), 0.8, nm=(2, 4)).view(shape)
        x = torch.randn(batch, c * groups, *image)
        packed = packed_along_columns(weight, groups)
        y = _conv(
            row, x, packed, None, m * groups, kernel, stride, padding, dilation, groups, mode,
            "none", 1,
        )  # fmt: skip
        check_conv(y, x, weight, None, stride, padding, dilation, groups, mode, "none")


@pytest.mark.sampled(30)
@conv_rows
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv_activations(row: registry.Row, activation: str) -> None:
    _check_geometry(row, GEOMETRIES[0], activation=activation)
    _check_geometry(row, GEOMETRIES[1], activation=activation)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Any, ...]:
    axes = draw(st.sampled_from((1, 2, 2)))
    kernel = tuple(draw(st.sampled_from((1, 2, 3, 5, 7))) for _ in range(axes))
    stride = tuple(draw(st.sampled_from((1, 1, 2, 3))) for _ in range(axes))
    dilation = tuple(draw(st.sampled_from((1, 1, 2, 3))) for _ in range(axes))
    mode = draw(st.sampled_from(PADDING_MODES))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    image = tuple(draw(st.integers(max(2, s // 2 + 1), s + 20)) for s in span)
    padding = []
    for axis in range(axes):
        limit = min(4, image[axis] - 1) if mode != "zeros" else 4
        low = max(0, -(-(span[axis] - image[axis]) // 2))
        hypothesis.assume(low <= limit)
        padding += [draw(st.integers(low, limit)), draw(st.integers(low, limit))]
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    c, m = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    batch = draw(st.sampled_from((0, 1, 1, 3)))
    return batch, groups, c, m, image, kernel, stride, tuple(padding), dilation, mode


@conv_rows
@hypothesis.given(data=st.data())
def test_conv_drawn_geometries(row: registry.Row, data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    density = data.draw(st.sampled_from(DENSITIES))
    _check_geometry(row, geometry, density, threads=data.draw(st.sampled_from((1, 2))))


@conv_rows
def test_conv_is_exact_on_small_integers_with_any_threads(row: registry.Row) -> None:
    weight = _weight(row, (10, 6, 3, 3), 0.5, integers=True)
    packed = _pack(row, weight)
    x = torch.randint(-8, 9, (2, 6, 15, 18)).float()
    for stride in ((1, 1), (2, 2)):
        expected = torch.nn.functional.conv2d(x, weight, stride=stride, padding=1)
        for threads in (1, 2, 5):
            y = _conv(
                row, x, packed, None, 10, (3, 3), stride, (1,) * 4, (1, 1), 1, "zeros", "none",
                threads,
            )  # fmt: skip
            assert torch.equal(y, expected)


@conv_rows
def test_conv_writes_its_output_only(row: registry.Row) -> None:
    if row.native_id is None:
        pytest.skip("the caller gives no memory to a kernel on a GPU")
    weight = _weight(row, (7, 4, 3, 3), 0.4)
    handle = open_packed(packed := _pack(row, weight))
    assert packed.numel() == handle.weights.nbytes
    for size, shift in itertools.product((3, 7, 14, 17), (0, 1)):
        memory_x = torch.randn(4 * size * size + shift)
        x = memory_x[shift:].view(1, 4, size, size)
        count = 7 * size * size
        memory = torch.full((count + 2 * GUARD,), CANARY)
        y = memory[GUARD + shift : GUARD + shift + count].fill_(float("nan"))
        handle.weights.conv(
            x.data_ptr(), y.data_ptr(), 0, 1, size, size, (1, 1), (1, 1, 1, 1), (1, 1), "zeros",
            "none", row.native_id, 1,
        )  # fmt: skip
        assert (memory[: GUARD + shift] == CANARY).all()
        assert (memory[GUARD + shift + count :] == CANARY).all()
        check_conv(y.view(1, 7, size, size), x, weight, None, (1, 1), (1,) * 4, (1, 1), 1)


def test_drivers_agree_with_the_best_row() -> None:
    weight = sparse_weight((8, 24), 0.3)
    x = torch.randn(5, 24)
    best = registry.select(registry.Problem("linear", "panel"))
    y = linear_cpu(x, packed := pack(weight), None, 8)
    assert torch.equal(y, linear_cpu(x, packed, None, 8, row=best.native_id))
