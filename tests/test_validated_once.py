"""A packed buffer is validated once: all else that is asked of it goes through its handle."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparseinfer import (
    SparseConv2d,
    SparseConvTranspose2d,
    SparseLinear,
    convert_to_sparse,
    formats,
    load_converted,
    load_sparse,
    native,
)
from sparseinfer.convert import conversion
from tests.oracle import sparse_weight


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all buffers that the native library validates from now on."""
    lengths: list[int] = []
    opened = native.Weights

    def count(address: int, length: int) -> Any:
        lengths.append(length)
        return opened(address, length)

    monkeypatch.setattr(native, "Weights", count)
    return lengths


def linear(zeros: float = 0.9) -> nn.Linear:
    layer = nn.Linear(32, 16)
    with torch.no_grad():
        layer.weight.copy_(sparse_weight((16, 32), 1 - zeros))
    return layer


def used(layer: nn.Module, x: Tensor) -> None:
    """Call a layer, and ask of its weight all there is to ask."""
    x = x.clone().requires_grad_()
    layer(x).sum().backward()
    layer.dense_weight(), layer.weight + 0, layer.nnz, repr(layer)
    formats.info(layer.packed), formats.unpack(layer.packed)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_of_a_packed_buffer(format: str, validated: list[int]) -> None:
    weight = sparse_weight((16, 32), 0.3, nm=(2, 4))
    packed = formats.pack(weight, format)
    for _ in range(2):
        assert formats.info(packed)["shape"] == (16, 32)
        assert torch.equal(formats.unpack(packed), weight)
    used(SparseLinear(32, 16, packed=packed), torch.randn(3, 32))
    assert validated == [packed.numel()]


@pytest.mark.parametrize(
    ("kind", "dense", "shape"),
    [
        (SparseLinear, lambda: nn.Linear(32, 16), (3, 32)),
        (SparseConv2d, lambda: nn.Conv2d(8, 4, 3), (2, 8, 6, 6)),
        (SparseConvTranspose2d, lambda: nn.ConvTranspose2d(8, 4, 2, stride=2), (2, 8, 6, 6)),
    ],
)
def test_of_a_layer(
    kind: Any, dense: Callable[[], nn.Module], shape: tuple[int, ...], validated: list[int]
) -> None:
    layer = kind.from_dense(dense())
    used(layer, torch.randn(shape))
    assert len(validated) == 1
    layer.weight = torch.ones_like(layer.weight)
    used(layer, torch.randn(shape))
    assert len(validated) == 2


@pytest.mark.parametrize("measured", [False, True])
def test_of_a_conversion(
    measured: bool, validated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A layer whose timing was disturbed is packed, and so validated, once more.
    monkeypatch.setattr(conversion, "review", lambda *parts: None)
    x = torch.randn(3, 32)
    example = {"example_inputs": x, "verify": False} if measured else {}
    sparse = convert_to_sparse(
        nn.Sequential(linear()), min_speedup=0, formats="panel", cache=False, **example
    )
    used(sparse[0], x)
    # Measuring compares with the smallest call of all, which has a packed weight of its own.
    assert validated.count(sparse[0].packed.numel()) == 1


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_of_a_state_dict(assign: bool, dense: bool, validated: list[int]) -> None:
    source, layer = linear(), SparseLinear.from_dense(linear())
    packed = SparseLinear.from_dense(source)
    validated.clear()
    layer.load_state_dict((source if dense else packed).state_dict(), assign=assign)
    used(layer, torch.randn(3, 32))
    assert validated == [packed.packed.numel()]
    assert torch.equal(layer.dense_weight(), source.weight)


def test_of_copies(validated: list[int]) -> None:
    layer = SparseLinear.from_dense(linear())
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        validated.clear()
        used(made, torch.randn(3, 32))
        assert len(validated) <= 1


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_of_a_file(suffix: str, tmp_path: Path, validated: list[int]) -> None:
    model = nn.Sequential(SparseLinear.from_dense(linear()))
    path, length = tmp_path / f"model.{suffix}", model[0].packed.numel()
    (torch.save if suffix == "pth" else save_file)(model.state_dict(), path)
    validated.clear()
    assert torch.equal(load_sparse(path)["0.weight"], model[0].dense_weight())
    assert validated == [length]
    validated.clear()
    loaded = load_converted(nn.Sequential(nn.Linear(32, 16)), path)
    used(loaded[0], torch.randn(3, 32))
    assert validated.count(length) == 1  # beside the empty layer that it was loaded into


def test_what_others_may_write_is_copied_and_validated_at_each_look(validated: list[int]) -> None:
    packed = formats.pack(sparse_weight((16, 32), 0.3))
    lent = torch.from_numpy(packed.numpy().copy())
    for other in (lent, packed.clone().share_memory_(), packed):
        validated.clear()
        formats.info(other), formats.unpack(other)
        assert len(validated) == 2
    packed.numpy()[200] ^= 1  # behind torch's back
    with pytest.raises(ValueError, match="its checksum does not match"):
        formats.info(packed)


def test_a_write_is_validated_anew(validated: list[int]) -> None:
    packed = formats.pack(sparse_weight((16, 32), 0.3))
    formats.info(packed)
    packed[200] ^= 1
    for look in (formats.info, formats.unpack):
        with pytest.raises(ValueError, match="its checksum does not match"):
            look(packed)
    packed[200] ^= 1
    assert formats.info(packed)["shape"] == (16, 32)
    assert len(validated) == 4


def test_a_description_is_the_callers_own() -> None:
    packed = formats.pack(torch.eye(8))
    found = formats.info(packed)
    found["params"]["kblock"], found["shape"] = 99, ()
    assert formats.info(packed)["params"]["kblock"] == 0
    assert formats.info(packed)["shape"] == (8, 8)


def test_a_damaged_buffer_leaves_the_layer_as_it_was() -> None:
    layer = SparseLinear.from_dense(linear())
    before, state = layer.packed, SparseLinear.from_dense(linear()).state_dict()
    for damage in (200, 70):
        state["packed"] = state["packed"].clone()
        state["packed"][damage] ^= 1
        with pytest.raises(RuntimeError, match=r"While loading packed: packed weight is corrupt"):
            layer.load_state_dict(state)
        assert layer.packed is before


def test_threads_unpack_one_buffer_at_once() -> None:
    shared = formats.pack(sparse_weight((256, 256), 0.1))
    expected, wrong = formats.unpack(shared), []

    def work() -> None:
        own = formats.pack(expected)
        for _ in range(20):
            if not (
                torch.equal(formats.unpack(shared), expected)
                and torch.equal(formats.unpack(own), expected)
            ):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
