"""The weight stream of the mma.sp kernel, read back by an emulator of the lanes, on the CPU."""

from __future__ import annotations

import mma_sp_emulator as emulator
import pytest
import torch
from oracle import sparse_weight
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
)

from sparseinfer import formats
from sparseinfer.kernels.cuda.stream import UNIT_BYTES, weight_stream
from sparseinfer.kernels.triton.nm_planes import NmMeta

DTYPES = [torch.float16, torch.bfloat16]


def stream_of(weight: Tensor, n: int = 2) -> Tensor:
    packed = formats.pack(weight, "nm", n=n, m=4)
    return weight_stream(packed, NmMeta.from_info(formats.info(packed)))


def check(weight: Tensor, x: Tensor, n: int = 2) -> None:
    y = emulator.linear(stream_of(weight, n), x, len(weight))
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    assert ((y - exact).abs() <= 2.0**-50 * weight.shape[1] * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "k", "tokens"),
    [(1, 1, 1), (1, 4, 8), (32, 128, 8), (33, 129, 9), (5, 131, 3), (70, 38, 17), (64, 256, 64)],
)
@pytest.mark.parametrize("density", [1.0, 0.6, 0.0], ids=["full groups", "short groups", "empty"])
def test_ragged_shapes(dtype: torch.dtype, m: int, k: int, tokens: int, density: float) -> None:
    torch.manual_seed(m + k)
    weight = sparse_weight((m, k), density, nm=(2, 4)).to(dtype)
    check(weight, torch.randn(tokens, k).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_of_four(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    check(sparse_weight((37, 141), 0.9, nm=(1, 4)).to(dtype), torch.randn(5, 141).to(dtype), n=1)


@pytest.mark.parametrize("kept", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (1,), (3,), ()])
def test_every_pattern_of_a_group(kept: tuple[int, ...]) -> None:
    weight = torch.zeros(40, 132)
    for position in kept:
        weight[:, position::4] = torch.randint(1, 9, (40, 33)).float()
    check(weight.half(), torch.randint(-8, 9, (3, 132)).half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_is_found_where_it_belongs(dtype: torch.dtype) -> None:
    # Each column of x picks one column of W, so y is W itself, exactly.
    torch.manual_seed(2)
    weight = sparse_weight((64, 64), 1.0, nm=(2, 4)).to(dtype)
    y = emulator.linear(stream_of(weight), torch.eye(64, dtype=dtype), 64)
    assert torch.equal(y.T, weight.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_weight_and_input(dtype: torch.dtype, value: float) -> None:
    weight = torch.zeros(35, 10, dtype=dtype)
    weight[34, 9], weight[3, 0] = value, 2
    weight[5, 4], weight[5, 5] = 1, 1
    y = emulator.linear(stream_of(weight), torch.ones(2, 10, dtype=dtype), 35)
    assert y[:, 34].isnan().all() if value != value else (y[:, 34] == value).all()
    rest = [row for row in range(34) if row not in (3, 5)]
    assert (y[:, 3] == 2).all() and (y[:, 5] == 2).all() and (y[:, rest] == 0).all()
    x = torch.ones(2, 10, dtype=dtype)
    x[1, 7] = value
    y = emulator.linear(stream_of(weight.nan_to_num(0, posinf=0)), x, 35)
    # Nobody keeps column 7, and no filler stands there: positions 0 and 1 were free or taken.
    assert (y[:, 3] == 2).all() and (y[:, 5] == 2).all() and (y[:, rest] == 0).all()
    weight[5, 5], weight[5, 7] = 0, 1
    y = emulator.linear(stream_of(weight.nan_to_num(0, posinf=0)), x, 35)
    assert y[1, 5].isnan() if value != value else y[1, 5] == value


def test_negative_zero_is_pruned() -> None:
    weight = torch.full((4, 8), -0.0).half()
    weight[:, 2], weight[:, 7] = 3, -5
    stream = stream_of(weight)
    assert not (stream.view(torch.int16)[: 8 * 256] == -0x8000).any(), "no value is -0.0"
    check(weight, torch.randn(2, 8).half())


def test_metadata_are_those_of_cutlass() -> None:
    torch.manual_seed(3)
    m, k = 96, 384
    weight = sparse_weight((m, k), 1.0, nm=(2, 4)).half()
    _, reordered = sparse_semi_structured_from_dense_cutlass(weight)
    # Words of 32 rows and 32 columns, in CUTLASS's order: column pairs of int16, then rows.
    theirs = reordered.flatten().view(torch.int32).view(k // 32, m // 32, 32)
    units = stream_of(weight).view(m // 32, k // 128, UNIT_BYTES)
    ours = units[..., 4096:].contiguous().view(torch.int32).view(m // 32, k // 128, 32, 4)
    assert torch.equal(ours.permute(1, 3, 0, 2).reshape(k // 32, m // 32, 32), theirs)


def test_size_is_nine_eighths_of_a_byte_a_weight() -> None:
    assert stream_of(torch.zeros(64, 256).half()).numel() == 64 * 256 * 9 // 8
    assert stream_of(torch.zeros(65, 257).half()).numel() == 96 * 384 * 9 // 8


@pytest.mark.parametrize(
    ("dtype", "n", "m", "got"),
    [
        (torch.float32, 2, 4, "2:4 of float32"),
        (torch.float16, 3, 4, "3:4 of float16"),
        (torch.bfloat16, 4, 8, "4:8 of bfloat16"),
    ],
)
def test_other_weights_are_refused(dtype: torch.dtype, n: int, m: int, got: str) -> None:
    packed = formats.pack(torch.zeros(4, 8, dtype=dtype), "nm", n=n, m=m)
    with pytest.raises(ValueError, match=f"expected a 1:4 or 2:4 weight .* got {got}; try pack"):
        weight_stream(packed, NmMeta.from_info(formats.info(packed)))
