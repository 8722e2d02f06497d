"""compressed-tensors' bitmask layouts: round trips, files it wrote itself, and hostile parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from sparseinfer.checkpoints import CheckpointError, load_sparse
from sparseinfer.checkpoints.bitmask import compress, compressed_bytes, decompress
from sparseinfer.checkpoints.plain import make_plain

GOLDEN = Path(__file__).parent / "golden"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]

# What the golden files were made of, by the version of compressed-tensors in their names.
FC = torch.tensor([[0, 1.5, 0, 0, -2, 0, 0, 0, 0, 3], [0] * 10, [4, 0, 0, 0, 0, 0, 0, 0, -5, 0.25]])
HALF = torch.tensor([[0, 1.5, 0, -2], [0.5, 0, 0, 3]]).to(torch.bfloat16)
UNSTRUCTURED = {"fc.weight": FC, "fc.bias": torch.tensor([0.5, 0, -1]), "half.weight": HALF}
TWO_FOUR = {
    "half.weight": torch.tensor([[0, 1.5, 0, -2, 1, 0, 0, 0], [0.5, 0, 0, 3, 0, 0, 0, 0]]).to(
        torch.bfloat16
    ),
    "half.bias": torch.tensor([1.0, 0.0]),
}


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype is tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


@given(
    st.lists(st.integers(1, 19), min_size=1, max_size=4),
    st.sampled_from(DTYPES),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_round_trip(shape, dtype, density, seed):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    weight = (torch.randn(shape, generator=generator) * kept).to(dtype)
    parts = compress(weight)
    found = decompress(parts, "w")
    assert found.dtype is dtype and torch.equal(found.double(), weight.double())
    nnz = int((weight.float() != 0).sum())
    size = sum(part.numel() * part.element_size() for part in parts.values())
    expected = compressed_bytes(tuple(weight.shape), nnz, weight.element_size())
    assert parts["compressed"].numel() == nnz and size == expected


def test_special_values():
    weight = torch.tensor([[0.0, -0.0, float("nan"), float("inf"), -1e-45]])
    parts = compress(weight)
    assert parts["bitmask"].tolist() == [[0b11100]]
    assert torch.equal(decompress(parts, "w")[0, 3:], weight[0, 3:])
    assert bool(decompress(parts, "w")[0, 2].isnan())


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("sparse_bitmask_ct_0.8.1.safetensors", UNSTRUCTURED),
        ("sparse_bitmask_ct_0.12.2.safetensors", UNSTRUCTURED),
        ("sparse_24_bitmask_ct_0.12.2.safetensors", TWO_FOUR),
    ],
)
def test_files_that_compressed_tensors_wrote(file, expected):
    assert same(load_sparse(GOLDEN / file), expected)


def test_the_parts_are_those_that_compressed_tensors_writes():
    theirs = load_file(GOLDEN / "sparse_bitmask_ct_0.12.2.safetensors")
    ours = {f"{name}.{part}": value
            for name, weight in (("fc", FC), ("half", HALF))
            for part, value in compress(weight).items()}  # fmt: skip
    assert same(ours | {"fc.bias": UNSTRUCTURED["fc.bias"]}, theirs)


def parts_of(weight=FC, **changes):
    return {name: part for name, part in (compress(weight) | changes).items() if part is not None}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (parts_of(bitmask=None), "expected a tensor bitmask beside the others, got none"),
        (parts_of(compressed=None), "expected a tensor compressed"),
        (parts_of(shape=None), "expected a tensor shape"),
        (parts_of(shape=torch.tensor([3, 9])), "expected zero bits behind each row"),
        (parts_of(shape=torch.tensor([3, 17])), r"expected a uint8 bitmask \[3, 3\]"),
        (parts_of(shape=torch.tensor([3.0, 10.0])), "expected an int64 shape"),
        (parts_of(shape=torch.tensor([2**62, 2**62])), "expected sizes with a product"),
        (parts_of(shape=torch.tensor([2**40, 8])), "expected sizes with a product"),
        (parts_of(shape=torch.tensor([-3, -10])), "expected sizes with a product"),
        (parts_of(shape=torch.tensor([0, 10])), "expected sizes with a product"),
        (parts_of(shape=torch.ones(9, dtype=torch.int64)), "int64 shape of 1 to 8 sizes"),
        (parts_of(shape=torch.empty(0, dtype=torch.int64)), "int64 shape of 1 to 8 sizes"),
        (parts_of(bitmask=torch.zeros(3, 2)), "expected a uint8 bitmask"),
        (parts_of(bitmask=torch.zeros(3, 2, dtype=torch.uint8)), "expected as many values as bits"),
        (parts_of(bitmask=torch.full((3, 2), 255, dtype=torch.uint8)), "expected zero bits behind"),
        (parts_of(compressed=torch.ones(5)), "expected as many values as bits, 6, got 5"),
        (parts_of(compressed=torch.ones(6, dtype=torch.complex64)), "expected real values"),
        (parts_of(compressed=torch.ones(2, 3)), "expected values in one dimension"),
        (parts_of(row_offsets=torch.tensor([0, 3, 4])), "expected int64 row_offsets"),
        (parts_of(row_offsets=torch.tensor([0, 3])), "expected int64 row_offsets"),
        (parts_of(row_offsets=torch.tensor([0, 3, 3], dtype=torch.int32)), "int64 row_offsets"),
        (parts_of(row_offsets=None), "a multiple of 4"),
    ],
)  # fmt: skip
def test_hostile_parts_are_refused(parts, message):
    with pytest.raises(CheckpointError, match=message):
        decompress(parts, "fc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bitmask": torch.tensor([[0b11101010], [0b10010000]], dtype=torch.uint8)}, "two bits"),
        ({"compressed": torch.ones(8)}, r"expected 2:4 values \[2, 4\], got \[8\]"),
        ({"compressed": torch.ones(2, 3)}, r"expected 2:4 values \[2, 4\]"),
        ({"shape": torch.tensor([[2], [6]])}, "zero bits behind"),
    ],
)
def test_hostile_two_in_four_is_refused(change, message):
    parts = load_file(GOLDEN / "sparse_24_bitmask_ct_0.12.2.safetensors")
    named = {part: parts[f"half.{part}"] for part in ("compressed", "bitmask", "shape")}
    assert torch.equal(decompress(named, "half"), TWO_FOUR["half.weight"])
    with pytest.raises(CheckpointError, match=message):
        decompress(named | change, "half")


@given(st.data())
def test_any_single_change_of_the_mask_is_noticed(data):
    parts = compress(FC)
    flat = parts["bitmask"].view(-1)
    index = data.draw(st.integers(0, flat.numel() - 1))
    flat[index] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CheckpointError):
        decompress(parts, "fc")


def test_a_group_without_its_partner_is_refused():
    entries = {f"fc.{part}": value for part, value in compress(FC).items()}
    del entries["fc.bitmask"]
    with pytest.raises(CheckpointError, match="fc: expected a tensor bitmask"):
        make_plain(entries)


def test_a_name_given_twice_is_refused():
    entries = {f"fc.{part}": value for part, value in compress(FC).items()}
    with pytest.raises(CheckpointError, match="expected one tensor of this name"):
        make_plain({"fc.weight": FC, **entries})


def test_a_tensor_merely_called_shape_is_left_alone():
    entries = {"anchor.shape": torch.tensor([3, 4]), "anchor.weight": FC}
    assert same(make_plain(entries).tensors, entries)
