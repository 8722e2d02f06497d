"""The exact selection of the smallest magnitudes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseinfer.prune import select
from sparseinfer.prune.select import find_cut, smallest

WEIGHTS = st.lists(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 1e-45]) | st.floats(width=32,
    allow_nan=False), max_size=12),
    min_size=1,
    max_size=4,
)  # fmt: skip
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def by_sorting(tensors, count):
    """The specification: a stable sort of all magnitudes."""
    joined = torch.cat([tensor.double().abs().reshape(-1) for tensor in tensors])
    mask = torch.zeros(len(joined), dtype=torch.bool)
    mask[joined.argsort(stable=True)[:count]] = True
    parts = mask.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@given(WEIGHTS, st.data())
def test_it_selects_what_a_stable_sort_does(values, data):
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES), min_size=len(values), max_size=4))
    tensors = [torch.tensor(v).to(dtype) for v, dtype in zip(values, dtypes, strict=False)]
    count = data.draw(st.integers(0, sum(tensor.numel() for tensor in tensors)))
    found = smallest(tensors, count)
    assert sum(int(mask.sum()) for mask in found) == count
    for mask, expected in zip(found, by_sorting(tensors, count), strict=True):
        assert torch.equal(mask, expected)


def test_chunks_do_not_change_the_result(monkeypatch):
    tensors = [torch.randint(-3, 4, (37, 5)).float(), torch.randint(-3, 4, (64,)).float()]
    expected = smallest(tensors, 100)
    monkeypatch.setattr(select, "CHUNK", 7)
    assert all(map(torch.equal, smallest(tensors, 100), expected))


def test_above_two_to_the_24_elements():
    count = 2**24 + 3
    ramp = torch.arange(count, dtype=torch.float64).to(torch.float32)
    (mask,) = smallest([ramp], count - 5)
    assert int(mask.sum()) == count - 5
    assert not bool(mask[-4:].any()) and bool(mask[: count - 8].all())


def test_a_transposed_tensor_is_read_row_major():
    tensor = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]]).t()
    (mask,) = smallest([tensor], 2)
    assert mask.tolist() == [[True, False, True], [False, False, False]]


def test_the_threshold_is_the_largest_selected_magnitude():
    weights = torch.randn(100)
    cut = find_cut([weights], 30)
    assert cut.threshold == float(weights.abs().sort().values[29])
    assert find_cut([weights], 0).threshold == 0.0


def test_nothing_and_everything():
    weights = [torch.randn(3, 3), torch.empty(0)]
    assert not any(bool(mask.any()) for mask in smallest(weights, 0))
    assert bool(smallest(weights, 9)[0].all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_has_no_rank_and_infinity_is_the_largest(dtype):
    with pytest.raises(ValueError, match="got 1 NaN; try"):
        smallest([torch.tensor([1.0, math.nan, -1.0], dtype=dtype)], 1)
    (mask,) = smallest([torch.tensor([-math.inf, 4.0], dtype=dtype)], 1)
    assert mask.tolist() == [False, True]


@pytest.mark.parametrize("count", [-1, 3])
def test_a_count_that_cannot_be(count):
    with pytest.raises(ValueError, match=f"expected a count of 0 to 2 elements, got {count}"):
        find_cut([torch.zeros(2)], count)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"got torch\.int64; try"):
        find_cut([torch.arange(3)], 1)
