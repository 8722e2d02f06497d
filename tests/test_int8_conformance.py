"""Every native row of int8 weights against exact integer sums, through the bindings."""

from typing import Any

import numpy as np
import pytest
import torch

from sparseinfer import formats, native
from sparseinfer.kernels import registry

X_SCALE, X_ZERO, Y_SCALE, Y_ZERO = 0.03, 117, 0.4, 9


def _rows(op: str) -> list[Any]:
    rows = (row for row in registry.rows() if row.op == op and "int8" in row.weight_types)
    return [pytest.param(row, id=row.name) for row in rows]


def _runs(row: registry.Row) -> int:
    reasons = row.machine_reasons()
    if reasons:
        pytest.skip("; ".join(reasons))
    assert row.native_id is not None
    return row.native_id


def _weight(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Integers with zeros, and a scale a row."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (rows, columns)) * (rng.random((rows, columns)) < 0.4)
    return values, rng.uniform(0.001, 0.02, rows).astype(np.float32)


def _result(sums: np.ndarray, scales: np.ndarray, bias: np.ndarray, y_type: str) -> np.ndarray:
    """What relu leaves of the sums `[M, N]`: one rounding of the product and the sum together."""
    scale = (scales * np.float32(X_SCALE)).astype(np.float64)[:, None]
    exact = sums.astype(np.float32).astype(np.float64) * scale + bias.astype(np.float64)[:, None]
    result = np.maximum(exact.astype(np.float32), 0)
    if y_type == "float32":
        return result
    inverse = np.float32(1) / np.float32(Y_SCALE)
    return np.clip(np.rint(result * inverse) + Y_ZERO, 0, 255).astype(np.uint8)


def _open(values: np.ndarray, scales: np.ndarray, shape: tuple[int, ...], g: int) -> Any:
    weight = torch.from_numpy((values * scales[:, None]).astype(np.float32)).view(shape)
    packed = formats.pack(weight, "panel", weights="int8", scales=torch.from_numpy(scales), g=g)
    assert torch.equal(formats.unpack(packed), weight)
    assert formats.info(packed)["nnz"] == np.count_nonzero(values)
    return packed, native.Weights(packed.data_ptr(), packed.numel())


@pytest.mark.parametrize("row", _rows("linear"))
@pytest.mark.parametrize("tokens", [1, 7, 40, 130])
@pytest.mark.parametrize("g", [1, 4])
@pytest.mark.parametrize("y_type", ["float32", "uint8"])
def test_linear_equals_integer_sums(row: registry.Row, tokens: int, g: int, y_type: str) -> None:
    rows, columns, row_id = 35, 70, _runs(row)
    values, scales = _weight(rows, columns)
    packed, weights = _open(values, scales, (rows, columns), g)
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (columns, tokens)).astype(np.uint8)
    bias = rng.standard_normal(rows).astype(np.float32)
    y = np.empty((rows, tokens), y_type)
    weights.linear_int8(
        x.ctypes.data, y.ctypes.data, bias.ctypes.data, tokens, tokens, tokens, True, "relu",
        row_id, 2, "uint8", y_type, X_SCALE, X_ZERO, 0, 0, Y_SCALE, Y_ZERO,
    )  # fmt: skip
    sums = values @ (x.astype(np.int64) - X_ZERO)
    assert np.array_equal(y, _result(sums, scales, bias, y_type))
    assert packed.numel()


@pytest.mark.parametrize("row", _rows("conv"))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("g", [1, 4])
@pytest.mark.parametrize("y_type", ["float32", "uint8"])
def test_conv_equals_integer_sums(row: registry.Row, stride: int, g: int, y_type: str) -> None:
    rows, channels, size, row_id = 21, 6, 13, _runs(row)
    values, scales = _weight(rows, channels * 9)
    packed, weights = _open(values, scales, (rows, channels, 3, 3), g)
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (2, channels, size, size)).astype(np.uint8)
    bias = rng.standard_normal(rows).astype(np.float32)
    kernel = torch.from_numpy(values.astype(np.float64)).view(rows, channels, 3, 3)
    # Outside of the image stands the zero point: zero, once it is taken off.
    centred = torch.from_numpy(x.astype(np.float64) - X_ZERO)
    sums = torch.nn.functional.conv2d(centred, kernel, stride=stride, padding=1).numpy()
    y = np.empty(sums.shape, y_type)
    weights.conv_int8(
        x.ctypes.data, y.ctypes.data, bias.ctypes.data, 2, size, size, (stride, stride),
        (1, 1, 1, 1), (1, 1), "zeros", "relu", row_id, 2, "uint8", y_type, X_SCALE, X_ZERO,
        Y_SCALE, Y_ZERO,
    )  # fmt: skip
    for image in range(2):
        expected = _result(sums[image].reshape(rows, -1), scales, bias, y_type)
        assert np.array_equal(y[image].reshape(rows, -1), expected)
    assert packed.numel()


def test_bad_quantization_is_refused() -> None:
    values, scales = _weight(4, 8)
    packed, weights = _open(values, scales, (4, 8), 1)
    x, y = np.zeros((8, 1), np.uint8), np.zeros((4, 1), np.uint8)

    def call(x_scale: float, x_zero: int, y_scale: float, y_zero: int) -> None:
        weights.linear_int8(
            x.ctypes.data, y.ctypes.data, 0, 1, 1, 1, True, "none", -1, 1, "uint8", "uint8",
            x_scale, x_zero, 0, 0, y_scale, y_zero,
        )  # fmt: skip

    call(1.0, 0, 1.0, 255)
    for bad in (0.0, -1.0, float("nan"), float("inf"), 1e-30):
        with pytest.raises(ValueError, match="expected x_scale from 2\\^-60 to 2\\^48"):
            call(bad, 0, 1.0, 0)
        with pytest.raises(ValueError, match="expected y_scale"):
            call(1.0, 0, bad, 0)
    for zero in (-1, 256):
        with pytest.raises(ValueError, match="expected x_zero_point from 0 to 255"):
            call(1.0, zero, 1.0, 0)
        with pytest.raises(ValueError, match="expected y_zero_point"):
            call(1.0, 0, 1.0, zero)
    with pytest.raises(ValueError, match="expected quantization with int8 weights"):
        weights.linear(x.ctypes.data, y.ctypes.data, 0, 1, 1, 1, True, "none", -1, 1)
    assert packed.numel()


def test_weights_that_int8_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="expected finite weights"):
        formats.pack(torch.tensor([[1.0, float("nan")]]), weights="int8")
    with pytest.raises(ValueError, match="expected at most 65535 input columns"):
        formats.pack(torch.ones(1, 65536), weights="int8")
    with pytest.raises(ValueError, match="expected a scale for each of 2 output rows, got shape"):
        formats.pack(torch.eye(2), weights="int8", scales=torch.ones(3))
    with pytest.raises(ValueError, match="expected scales of 2"):
        formats.pack(torch.eye(2), weights="int8", scales=torch.zeros(2))
    with pytest.raises(TypeError, match="expected scales as a tensor, got list"):
        formats.pack(torch.eye(2), weights="int8", scales=[1.0, 1.0])
