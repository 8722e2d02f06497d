"""How large int8 weights are when saved: against dense float32, and where the bytes go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparseinfer import convert_to_sparse, save_sparse
from sparseinfer.demo.sizes import saved
from sparseinfer.prune import Pruner

SPARSITY = 0.9


def pruned(outputs: int, inputs: int, structure: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs))
    pruner = Pruner(model, None, SPARSITY, structure=structure)
    pruner.step()
    pruner.finalize()
    return model


def in_int8(model: nn.Module) -> nn.Module:
    return convert_to_sparse(model, weights="int8", min_speedup=0)


@pytest.mark.parametrize(
    ("structure", "most"), [("unstructured", 0.075), ("4x1", 0.045), ("1x4", 0.045)]
)
def test_a_saved_large_layer_is_a_small_share_of_dense_float32(
    structure: str, most: float, tmp_path: Path
) -> None:
    model = pruned(2048, 2048, structure)
    sparse, dense = in_int8(model), len(saved(model))
    save_sparse(sparse, tmp_path / "model.safetensors")
    for size in (len(saved(sparse)), (tmp_path / "model.safetensors").stat().st_size):
        assert 0.1 / 4 < size / dense <= most  # a byte for each kept weight is the least


@pytest.mark.parametrize(
    ("structure", "index_bytes", "padded"),
    [("unstructured", 1.72, 1.15), ("4x1", 0.5, 1.05), ("1x4", 0.43, 1.05)],
)
@pytest.mark.parametrize("shape", [(768, 768), (1024, 2048)])
def test_bytes_are_of_indices_and_values(
    shape: tuple[int, int], structure: str, index_bytes: float, padded: float
) -> None:
    """A kept weight takes a byte and its share of an index; a row 8 bytes, and 10 of a panel's 40.

    At 90% a column of a panel holds 1.16 unstructured weights, which share its index of two bytes;
    a block of 4x1 is one column, and of 1x4 1.16 blocks share one. Units that are not full take
    the rest, the more the smaller a layer is.
    """
    info = in_int8(pruned(*shape, structure))[0].handle.info
    sections, kept = info["sections"], info["nnz"]
    assert kept == pytest.approx(shape[0] * shape[1] * (1 - SPARSITY), rel=0.01)
    indices = sections["values"] - sections["indices"]
    values = info["nbytes"] - sections["values"]
    assert 0.99 * index_bytes <= indices / kept <= padded * index_bytes
    assert 1 <= values / kept <= padded
    assert sections["indices"] <= 128 + 18 * shape[0] + 3 * 64
