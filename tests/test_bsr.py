"""The bsr format from Python: options, BSR tensors of torch, and packing where a weight lies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseinfer import SparseConv2d, SparseLinear, convert_to_sparse, formats, pack, unpack
from sparseinfer.formats.bsr import bsr_blob

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _blocks(rows: int, columns: int, block: int) -> torch.Tensor:
    kept = torch.rand(-(-rows // block), -(-columns // block)) < 0.4
    kept[0, 0] = True
    weight = torch.randn(rows, columns)
    return weight * kept.repeat_interleave(block, 0).repeat_interleave(block, 1)[:rows, :columns]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", formats.BLOCKS)
def test_values_and_options_survive(block: int, dtype: torch.dtype) -> None:
    weight = _blocks(200, 150, block).to(dtype)
    packed = pack(weight, "bsr", block=block)
    info = formats.info(packed)
    assert info["value_type"] == str(dtype).removeprefix("torch.")
    assert info["params"]["block"] == block
    assert torch.equal(unpack(packed).to(dtype), weight)


def test_layers_run_on_the_cpu_and_keep_their_blocks() -> None:
    linear, conv = nn.Linear(100, 40), nn.Conv2d(20, 33, 3, padding=1)
    sparse = SparseLinear.from_dense(linear, "bsr", block=32, value_type="float16")
    x = torch.randn(5, 100)
    dense = torch.nn.functional.linear(x, sparse.dense_weight(), linear.bias)
    torch.testing.assert_close(sparse(x), dense)
    image = torch.randn(2, 20, 6, 7)
    torch.testing.assert_close(SparseConv2d.from_dense(conv, "bsr")(image), conv(image))
    sparse.load_state_dict({"weight": _blocks(40, 100, 16), "bias": torch.zeros(40)})
    assert formats.info(sparse.packed)["params"]["block"] == 32
    assert formats.info(sparse.packed)["value_type"] == "float16"


@pytest.mark.parametrize("block", [8, 0, 48, 256])
def test_other_block_sizes_are_refused(block: int) -> None:
    with pytest.raises(ValueError, match=r"expected blocks of 16, 32, 64 or 128 .* try block = 64"):
        pack(torch.eye(8), "bsr", block=block)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("block", formats.BLOCKS)
def test_a_bsr_tensor_of_torch_sets_the_blocks(block: int) -> None:
    weight = _blocks(256, 128, block)
    packed = pack(weight.to_sparse_bsr(block), "bsr")
    assert torch.equal(packed, pack(weight, "bsr", block=block))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_bsr_tensor_of_other_blocks_is_refused() -> None:
    weight = torch.ones(64, 64)
    for blocks in ((8, 8), (16, 32)):
        with pytest.raises(ValueError, match=f"got {blocks[0]}x{blocks[1]}; try weight.to_dense"):
            pack(weight.to_sparse_bsr(blocks), "bsr")
    with pytest.raises(ValueError, match="expected square blocks of 32 in the BSR"):
        pack(weight.to_sparse_bsr(16), "bsr", block=32)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_convert_takes_a_layer_whose_weight_is_a_bsr_tensor() -> None:
    model = nn.Sequential(nn.Linear(64, 96))
    weight = _blocks(96, 64, 32)
    model[0].weight = nn.Parameter(weight.to_sparse_bsr(32), requires_grad=False)
    x = torch.randn(3, 64)
    dense = torch.nn.functional.linear(x, weight, model[0].bias)
    sparse = convert_to_sparse(
        model, example_inputs=None, formats=("bsr",), min_speedup=0, inplace=True
    )
    assert isinstance(sparse[0], SparseLinear) and sparse[0].format == "bsr"
    assert formats.info(sparse[0].packed)["params"]["block"] == 32
    torch.testing.assert_close(sparse(x), dense)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", formats.BLOCKS)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 1), 1), ((70, 200), 1), ((64, 128), 1), ((9, 5, 3), 3), ((40, 18, 3, 2), 2)],
)
def test_packing_in_torch_gives_the_native_bytes(
    shape: tuple[int, ...], groups: int, block: int, dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.")
    for density in (0.0, 0.02, 1.0):
        weight = torch.randn(shape) * (torch.rand(shape) < density)
        weight.flatten()[-1] = -0.0
        native = pack(weight, "bsr", groups, block=block, value_type=name)
        assert torch.equal(bsr_blob(weight, groups, block=block, value_type=name), native)
        assert torch.equal(bsr_blob(weight.to(dtype), groups, block=block, value_type=name), native)


def test_packing_in_torch_keeps_nan_and_refuses_what_it_cannot_hold() -> None:
    weight = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-10]])
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        native = pack(weight, "bsr", block=16, value_type=name)
        assert torch.equal(bsr_blob(weight, block=16, value_type=name), native)
    with pytest.raises(ValueError, match="in the range of float16, got 65520; try float32"):
        bsr_blob(torch.full((1, 1), 65520.0), value_type="float16")
    with pytest.raises(ValueError, match=r"with elements, got shape \[0, 4\]"):
        bsr_blob(torch.empty(0, 4))
    with pytest.raises(ValueError, match="got 8 and float32; try block=64"):
        bsr_blob(torch.eye(4), block=8)
