"""Memory that others may write: what was validated is what kernels read, whatever becomes of it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparseinfer
from sparseinfer.formats import is_own

X = torch.randn(4, 96, generator=torch.Generator().manual_seed(1))


def converted() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32))
    for layer in (model[0], model[2]):
        layer.weight.data *= torch.rand(layer.weight.shape) < 0.2
    return sparseinfer.convert_to_sparse(model.eval(), min_speedup=0)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def saved(path: Path, model: nn.Module) -> None:
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in model.state_dict().items()}, path)
    else:
        torch.save(model.state_dict(), path)


def by_torch(path: Path) -> dict[str, Tensor]:
    return torch.load(path, mmap=True, weights_only=True)  # type: ignore[no-any-return]


def overwritten(path: Path) -> None:
    """The bytes of a file replaced in place, as another process does to a mapped one."""
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


def packed_names(state: dict[str, Tensor]) -> list[str]:
    return [name for name in state if name.endswith("packed")]


@pytest.mark.parametrize(
    ("name", "read"),
    [("a.pt", by_torch), ("a.safetensors", load_file)],
    ids=["torch", "safetensors"],
)
@pytest.mark.parametrize("into", ["load_state_dict", "load_converted"])
def test_a_mapped_file_may_change_after_loading(
    tmp_path: Path, name: str, read: Callable[[Path], dict[str, Tensor]], into: str
) -> None:
    sparse = converted()
    saved(tmp_path / name, sparse)
    state = read(tmp_path / name)
    assert not any(is_own(state[key]) for key in packed_names(state))
    if into == "load_state_dict":
        loaded = copy.deepcopy(sparse)
        loaded.load_state_dict(state, assign=True)
    else:
        loaded = sparseinfer.load_converted(dense(), state, assign=True)
    expected = [layer.dense_weight() for layer in (sparse[0], sparse[2])]
    overwritten(tmp_path / name)
    assert bool((state["0.packed"] == 255).all())
    assert [torch.equal(own.dense_weight(), was) for own, was in zip(
        (loaded[0], loaded[2]), expected, strict=True)] == [True, True]  # fmt: skip
    loaded[0].bias.data.zero_()
    loaded(X)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_may_be_cut_after_loading(tmp_path: Path, name: str) -> None:
    """In a process of its own: a fault would end it."""
    saved(tmp_path / name, converted())
    code = f"""
import os, torch, sparseinfer
from torch import nn
from safetensors.torch import load_file
path = {str(tmp_path / name)!r}
state = load_file(path) if path.endswith("safetensors") else torch.load(path, mmap=True)
model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
model = sparseinfer.load_converted(model, state, assign=True)
layers = [model[0], model[2]]
for layer in layers:
    layer.bias = None
x = torch.ones(4, 96)
before = model(x)
os.truncate(path, 0)
assert torch.equal(model(x), before)
assert all(layer.dense_weight().isfinite().all() for layer in layers)
print("right")
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "right\n"), found.stderr


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_read_by_its_path_is_not_mapped(tmp_path: Path, name: str, assign: bool) -> None:
    sparse = converted()
    saved(tmp_path / name, sparse)
    loaded = sparseinfer.load_converted(dense(), tmp_path / name, assign=assign)
    overwritten(tmp_path / name)
    assert torch.equal(loaded(X), sparse(X))


def test_a_whole_model_from_a_mapped_file(tmp_path: Path) -> None:
    sparse = converted()
    torch.save(sparse, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", mmap=True, weights_only=False)
    assert is_own(loaded[0].packed)
    expected = sparse[0].dense_weight()
    overwritten(tmp_path / "model.pt")
    assert torch.equal(loaded[0].dense_weight(), expected)


def foreign(packed: Tensor) -> list[tuple[Tensor, Callable[[], Any]]]:
    """The same bytes in memory of others, each with what writes into it unseen."""
    array = packed.clone().numpy().copy()
    shared = packed.clone().share_memory_()
    alias = torch.from_numpy(np.frombuffer(memoryview(shared.numpy()), np.uint8))
    own = bytearray(packed.numpy().tobytes())
    ones = b"\xff" * len(own)
    return [
        (torch.from_numpy(array), lambda: array.fill(255)),
        (shared, lambda: alias.numpy().fill(255)),
        (torch.frombuffer(own, dtype=torch.uint8), lambda: own.__setitem__(slice(None), ones)),
    ]  # fmt: skip


@pytest.mark.parametrize("which", [0, 1, 2], ids=["numpy", "shared memory", "bytearray"])
@pytest.mark.parametrize("format", ["panel", "csr", "nm"])
def test_a_layer_on_memory_of_others(which: int, format: str) -> None:
    weight = torch.zeros(64, 96)
    weight[:, ::4] = 1.0
    packed, write = foreign(sparseinfer.pack(weight, format))[which]
    layer = sparseinfer.SparseLinear(96, 64, bias=False, packed=packed)
    before = layer(X)
    operator = torch.ops.sparseinfer.linear(X, packed, None, 64, "none", 0)
    write()
    assert int(packed[0]) == 255
    assert torch.equal(layer(X), before)
    assert torch.equal(torch.ops.sparseinfer.linear(X, packed, None, 64, "none", 0), operator)
    with pytest.raises(ValueError, match="packed weight"):
        sparseinfer.unpack(packed)  # which reads what is there now
    with pytest.raises(ValueError, match="packed weight"):
        copy.deepcopy(layer)(X)


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "zero_": lambda packed: packed.zero_(),
    "fill_": lambda packed: packed.fill_(255),
    "copy_": lambda packed: packed.copy_(torch.full_like(packed, 7)),
    "index": lambda packed: packed.__setitem__(slice(8, 64), 255),
    "view": lambda packed: packed[64:].view(torch.int32).fill_(-1),
    "set_": lambda packed: packed.set_(torch.zeros(64, dtype=torch.uint8)),
    "detach": lambda packed: packed.detach().random_(0, 255),
    "resize_": lambda packed: packed.resize_(64),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_into_the_buffer_is_noticed(write: str) -> None:
    sparse = converted()
    sparse(X)
    WRITES[write](sparse[0].packed)
    with pytest.raises(ValueError, match="packed weight"):
        sparse(X)
    with pytest.raises(ValueError, match="packed weight"):
        sparse[0].dense_weight()


def test_a_new_buffer_is_validated() -> None:
    sparse = converted()
    sparse(X)
    sparse[0].packed = torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match="packed weight"):
        sparse(X)


def test_memory_of_torch_is_not_copied() -> None:
    sparse = converted()
    sparse(X)
    packed = sparse[0].packed
    assert sparse[0].handle.memory.data_ptr() == packed.data_ptr()
    assert sparse[0].handle.info["format"] == "panel"
    sparseinfer.unpack(packed)
    assert is_own(packed)
    assert is_own(pickle.loads(pickle.dumps(sparse))[0].packed)
    loaded = sparseinfer.load_converted(dense(), sparse.state_dict(), assign=True)
    assert loaded[0].packed.data_ptr() == packed.data_ptr()


@pytest.mark.parametrize("move", [lambda model: model.to("cpu"), nn.Module.half, nn.Module.float])
def test_a_model_built_on_meta_moves_once_it_is_loaded(
    move: Callable[[nn.Module], nn.Module],
) -> None:
    sparse = converted()
    with torch.device("meta"):
        empty = dense()
    loaded = sparseinfer.load_converted(empty, sparse.state_dict(), assign=True)
    assert torch.equal(move(loaded).float()(X), move(sparse).float()(X))
