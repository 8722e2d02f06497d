"""Packed buffers: they give back what was packed, and refuse to be tampered with."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import check_linear, sparse_weight

from sparseinfer import _C, formats, pack, unpack
from sparseinfer.formats.handles import open_packed
from sparseinfer.formats.patterns import _nm, detect_pattern

SHAPES = st.one_of(
    st.tuples(st.integers(1, 20), st.integers(1, 70)),
    st.tuples(st.integers(1, 10), st.integers(1, 6), st.integers(1, 5)),
    st.tuples(st.integers(1, 10), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
)


@hypothesis.given(
    shape=SHAPES,
    groups=st.sampled_from((1, 1, 2, 3)),
    density=st.sampled_from((0.0, 0.05, 0.3, 0.5, 1.0)),
    format=st.sampled_from(formats.FORMATS),
    kblock=st.sampled_from((0, 16, 48)),
)
def test_round_trip(
    shape: tuple[int, ...], groups: int, density: float, format: str, kblock: int
) -> None:
    if len(shape) == 2:
        groups = 1
    params: dict[str, Any] = {"nm": {"n": 4, "m": 4}, "panel": {"kblock": kblock}}.get(format, {})
    weight = sparse_weight((shape[0] * groups, *shape[1:]), density)
    packed = pack(weight, format, groups, **params)
    assert torch.equal(unpack(packed), weight)
    found = formats.info(packed)
    assert found["format"] == format
    assert found["shape"] == tuple(weight.shape)
    assert found["groups"] == groups
    assert found["nnz"] == int((weight != 0).sum())
    assert found["nbytes"] == packed.numel()
    assert torch.equal(pack(unpack(packed), format, groups, **params), packed)


def test_nan_inf_and_negative_zero() -> None:
    weight = torch.tensor([[float("nan"), 0.0, -0.0, float("-inf")], [1e-42, 0.0, 0.0, 2.0]])
    back = unpack(pack(weight))
    assert back[0, 0].isnan() and back[0, 3] == float("-inf")
    assert back[1, 0] == weight[1, 0] and back[0, 1] == back[0, 2] == 0
    assert formats.info(pack(weight))["nnz"] == 4


def test_panel_values_as_bfloat16() -> None:
    weight = sparse_weight((64, 300), 0.5)
    packed, wide = pack(weight, weights="bfloat16"), pack(weight)
    assert torch.equal(unpack(packed), weight.bfloat16().float())
    assert formats.info(packed)["value_type"] == "bfloat16"
    assert packed.numel() < 0.72 * wide.numel()
    x = torch.randn(5, 300)
    y = torch.ops.sparseinfer.linear(x, packed, None, 64, "none", 1)
    check_linear(y, x, weight.bfloat16().float())
    with pytest.raises(ValueError, match="panel float32, bfloat16 and int8"):
        pack(weight, weights="float16")


def test_words_for_types() -> None:
    weight = sparse_weight((8, 32), 0.5)
    with pytest.warns(DeprecationWarning, match="try weights='bfloat16'"):
        former = pack(weight, value_type="bfloat16")
    assert torch.equal(former, pack(weight, weights="bfloat16", activations="float32"))
    with pytest.raises(NotImplementedError, match="int4 weights and is not built yet"):
        pack(weight, weights="int4")
    with pytest.raises(NotImplementedError, match="int16 activations"):
        pack(weight, weights="int8", activations="int16")
    with pytest.raises(ValueError, match="got 'half'; try weights="):
        pack(weight, weights="half")
    with pytest.raises(TypeError, match="expected weights or value_type"):
        pack(weight, weights="bfloat16", value_type="int8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nm_keeps_narrow_values(dtype: torch.dtype) -> None:
    weight = sparse_weight((8, 32), 1.0, nm=(2, 4)).to(dtype)
    packed = pack(weight, "nm")
    assert formats.info(packed)["value_type"] == str(dtype).removeprefix("torch.")
    assert torch.equal(unpack(packed).to(dtype), weight)


@pytest.mark.parametrize(
    ("weight", "format", "error", "text"),
    [
        (
            torch.ones(4, 4),
            "none",
            ValueError,
            f"expected a format of {', '.join(formats.FORMATS)}, got 'none'",
        ),
        (torch.ones(4, 4).double(), "panel", TypeError, "expected a float32 weight"),
        (torch.ones(4, 4), "nm", ValueError, "4"),
        (torch.ones(1, 65536), "panel", ValueError, "65535"),
        (torch.ones(4), "panel", ValueError, "2 to 4 dimensions"),
    ],
)
def test_what_cannot_be_packed(
    weight: torch.Tensor, format: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        pack(weight, format)


# ---- tampering ---------------------------------------------------------------------------------


def _rejected(blob: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected|packed|corrupt|blob|buffer"):
        _C.Weights(blob.data_ptr(), blob.numel())
    with pytest.raises(ValueError, match=r"."):
        unpack(blob)


def _small(format: str) -> torch.Tensor:
    params = {"block": 16} if format == "bsr" else {}
    return pack(sparse_weight((6, 20), 0.4, nm=(2, 4)), format, **params)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_every_byte_flip_is_rejected(format: str) -> None:
    packed = _small(format)
    for position in range(packed.numel()):
        for mask in (0x01, 0x80, 0xFF):
            damaged = packed.clone()
            damaged[position] ^= mask
            with pytest.raises(ValueError, match=r"."):
                _C.Weights(damaged.data_ptr(), damaged.numel())


@pytest.mark.parametrize("format", formats.FORMATS)
def test_other_lengths_are_rejected(format: str) -> None:
    packed = _small(format)
    for length in (*range(0, 130), *range(130, packed.numel(), 7), packed.numel() - 1):
        _rejected(packed[:length].clone())
    for extra in (1, 8, 64):
        _rejected(torch.cat([packed, torch.zeros(extra, dtype=torch.uint8)]))


@hypothesis.given(data=st.binary(max_size=600), headed=st.booleans())
def test_random_bytes_are_rejected(data: bytes, headed: bool) -> None:
    blob = torch.tensor(list(data), dtype=torch.uint8)
    if headed:
        blob = torch.cat([pack(torch.eye(8))[:56], blob])
    _rejected(blob)


def _with_checksum(blob: torch.Tensor) -> torch.Tensor:
    """The buffer with a checksum that fits it (csrc/formats/LAYOUT.md): damage made on purpose."""
    words = blob.view(torch.int64).tolist()
    value = 0xCBF29CE484222325
    for index, word in enumerate(words):
        if index != 15:
            value = ((value ^ (word & 0xFFFFFFFFFFFFFFFF)) * 0x100000001B3) % 2**64
            value ^= value >> 32
    blob[120:128] = torch.tensor(list(value.to_bytes(8, "little")), dtype=torch.uint8)
    return blob


@pytest.mark.parametrize("format", formats.FORMATS)
def test_forged_buffers_never_reach_a_kernel_out_of_bounds(format: str) -> None:
    packed = _small(format)
    assert torch.equal(_with_checksum(packed.clone()), packed)
    x = torch.randn(3, 20)
    accepted = 0
    for position in range(packed.numel()):
        forged = packed.clone()
        forged[position] ^= 0xFF
        _with_checksum(forged)
        try:
            shape = open_packed(forged).shape
        except ValueError:
            continue
        # What passes is a valid buffer with other values in it; it computes what it holds.
        accepted += 1
        if shape == (6, 20):
            y = torch.ops.sparseinfer.linear(x, forged, None, 6, "none", 1)
            dense = x.double() @ unpack(forged).double().T
            torch.testing.assert_close(y.double(), dense, equal_nan=True, rtol=1e-3, atol=1e30)
    assert accepted < packed.numel() // 2


# ---- patterns ----------------------------------------------------------------------------------


def _blocks(height: int, width: int) -> torch.Tensor:
    rows, columns = max(64, 2 * height), max(64, 2 * width)
    kept = (torch.rand(rows // height, columns // width) < 0.3).float()
    kept[:2, :2] = torch.eye(2)
    kept = kept.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return torch.randn(rows, columns) * kept


def _channels() -> torch.Tensor:
    weight = torch.randn(16, 8, 3, 3)
    weight[[1, 5]] = 0
    weight[:, [0, 3, 4]] = 0
    return weight


def _along_columns() -> torch.Tensor:
    """2:4 in the reshape to [M, K], which is no pattern of input channels."""
    return sparse_weight((16, 72), 1.0, nm=(2, 4)).view(16, 8, 3, 3)


def _zeroed(shape: tuple[int, ...], rows: list[int], channels: list[int]) -> torch.Tensor:
    weight = torch.randn(*shape)
    weight[rows] = 0
    weight[:, channels] = 0
    return weight


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("dense", lambda: torch.randn(8, 8)),
        ("zero", lambda: torch.zeros(8, 8)),
        ("unstructured", lambda: sparse_weight((64, 64), 0.3)),
        ("unstructured", lambda: sparse_weight((64, 64), 0.02)),
        ("unstructured", lambda: sparse_weight((16, 8, 3, 3), 0.5)),
        ("2:4", lambda: sparse_weight((32, 64), 1.0, nm=(2, 4))),
        ("1:4", lambda: sparse_weight((32, 64), 1.0, nm=(1, 4))),
        ("4:8", lambda: sparse_weight((32, 64), 1.0, nm=(4, 8))),
        ("2:4", lambda: sparse_weight((16, 8, 3, 3), 1.0, nm=(2, 4))),
        ("2:4", lambda: sparse_weight((16, 8, 3), 1.0, nm=(2, 4))),
        ("4:8", lambda: sparse_weight((16, 8, 1, 1), 1.0, nm=(4, 8))),
        ("2:4", lambda: sparse_weight((16, 10, 3, 3), 1.0, nm=(2, 4))),
        ("unstructured", _along_columns),
        ("block 4x1", lambda: _blocks(4, 1)),
        ("block 1x4", lambda: _blocks(1, 4)),
        ("block 8x8", lambda: _blocks(8, 8)),
        ("block 8x1", lambda: _blocks(8, 1)),
        ("block 16x1", lambda: _blocks(16, 1)),
        ("block 32x32", lambda: _blocks(32, 32)),
        ("block 64x64", lambda: _blocks(64, 64)),
        ("block 128x128", lambda: _blocks(128, 128)),
        ("block 64x64", lambda: _blocks(64, 64)[:-7, :-9]),
        ("block 64x64", lambda: _blocks(64, 64).view(128, 32, 2, 2)),
        ("block 16x1", lambda: _blocks(16, 1).view(64, 16, 2, 2)),
        ("channel: 2 rows, 3 inputs", _channels),
        ("channel: 1 row", lambda: _zeroed((8, 4, 3, 3), [5], [])),
        ("channel: 1 input", lambda: _zeroed((8, 4, 3), [], [0])),
        ("channel: 7 rows, 1 input", lambda: _zeroed((8, 4), list(range(7)), [3])),
    ],
)
def test_patterns(name: str, make: Any) -> None:
    assert str(detect_pattern(make())) == name


@pytest.mark.parametrize(
    "make",
    [
        lambda: sparse_weight((16, 8, 3, 3), 0.3),
        lambda: _blocks(4, 1),
        lambda: torch.zeros(16, 8),
        lambda: torch.randn(16, 8, 3),
    ],
)
def test_empty_rows_and_channels_are_counted_in_any_pattern(make: Any) -> None:
    weight = make()
    weight[[0, 3]] = 0
    weight[:, 5] = 0
    pattern = detect_pattern(weight)
    flat = weight.flatten(1)
    rows = sum(not row.any() for row in flat)
    channels = sum(not weight[:, c].any() for c in range(weight.shape[1]))
    assert (pattern.zero_rows, pattern.zero_channels) == (rows, channels)
    assert rows >= 2 and channels >= 1


def _n_of_m_by_definition(kept: torch.Tensor) -> tuple[int, int] | None:
    for m in (4, 8, 16):
        groups = [row[i : i + m].sum() for row in kept for i in range(0, len(row) - m + 1, m)]
        counts = torch.tensor(groups)
        if not groups:
            return None
        n = int(counts.max())
        rest = max(int(row[len(row) // m * m :].sum()) for row in kept)
        if n <= m // 2 and float((counts == n).sum()) >= 0.9 * len(groups) and rest <= n:
            return n, m
    return None


@pytest.mark.parametrize("columns", [3, 4, 7, 8, 12, 15, 16, 20, 31, 32, 44, 63])
@pytest.mark.parametrize("n_of_m", [(1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (3, 16), (8, 16)])
def test_groups_start_at_the_first_column_and_a_rest_holds_n_too(
    columns: int, n_of_m: tuple[int, int]
) -> None:
    n, m = n_of_m
    kept = torch.rand(6, columns) < 0.5
    for start in range(0, columns, m):
        order = torch.rand(6, min(m, columns - start)).argsort(1)
        kept[:, start : start + m] = order < n
    # A view into a wider weight, as slices are.
    view = torch.cat([torch.ones(6, 1, dtype=torch.bool), kept], 1)[:, 1:]
    assert _nm(view) == _nm(kept) == _n_of_m_by_definition(kept)
    if n <= m // 2 and columns >= m:
        assert _nm(kept) is not None
    if columns % m > n:
        kept[:, columns // m * m :] = True
        assert _nm(kept) == _n_of_m_by_definition(kept) != n_of_m
