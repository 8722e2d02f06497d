"""save_sparse of int8 and bfloat16 layers: small files, the same layers back, no hostile ones."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import sparseinfer
from sparseinfer import load_converted, load_sparse, load_sparse_into, save_sparse, to_dense
from sparseinfer.checkpoints import CheckpointError
from sparseinfer.checkpoints.facts import inspect_checkpoint
from sparseinfer.checkpoints.integers import SUFFIXES
from sparseinfer.checkpoints.layout import LAYOUT
from sparseinfer.convert.replace import replace
from sparseinfer.layers.kinds import kind_of, packed_layers
from sparseinfer.quantize import ActivationScale, scale_of_range

SCALE = scale_of_range(-2.5, 3.0)
INT8 = {"weights": "int8"}
VALUES = {"weights": "bfloat16"}
PAIRS = {"weights": "bfloat16", "activations": "bfloat16"}

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(40, 24), (3, 40)),
    (nn.Linear(40, 24, bias=False), (40,)),
    (nn.Conv1d(4, 8, 5, padding=2, groups=2), (2, 4, 19)),
    (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 9)),
]

OTHERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1), (2, 8, 7)),
    (nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 8, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, dilation=2), (2, 4, 5, 5)),
]


def _sparse(dense: Any, words: dict[str, Any], scale: ActivationScale | None = None) -> nn.Module:
    """A model of one layer, which is sparse."""
    torch.manual_seed(0)
    dense = copy.deepcopy(dense).eval()
    kind: Any = kind_of(dense)
    for name in kind.weights(dense):
        weight = dense.get_parameter(name)
        weight.data = sparse_weight(tuple(weight.shape), 0.3)
    model = nn.Sequential(dense)
    if scale is not None:
        words = {**words, "input_scale": scale}
    return replace(model, {dense: kind.sparse.from_dense(dense, **words)})


def _fresh(dense: nn.Module) -> nn.Module:
    return nn.Sequential(copy.deepcopy(dense)).eval()


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, tuple):
        return all(_same(one, other) for one, other in zip(found, expected, strict=True))
    return torch.equal(found, expected)


def _check(model: nn.Module, dense: nn.Module, path: Path, *inputs: torch.Tensor) -> None:
    """What a file by save_sparse gives, as a state_dict and in a model."""
    expected = model(*inputs)
    plain = to_dense(model).state_dict()
    found = load_sparse(path)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name].float(), plain[name].float()) for name in plain)
    for fresh in (_fresh(dense), _fresh(dense).to("meta")):
        again = load_sparse_into(fresh, path)
        assert again is fresh and _same(again(*inputs), expected)
        packed = [layer.packed for _, layer in packed_layers(model)]
        others = [layer.packed for _, layer in packed_layers(again)]
        assert _same(tuple(others), tuple(packed)) and others
        assert to_dense(again).state_dict().keys() == plain.keys()


# ---- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
@pytest.mark.parametrize(("dense", "shape"), LAYERS, ids=str)
def test_int8_layers_come_back(
    name: str, dense: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    scales = [SCALE, None] if isinstance(dense, nn.Linear) else [SCALE]
    for scale in scales:
        path = tmp_path / str(scale) / name
        model = _sparse(dense, INT8, scale)
        saved = save_sparse(model, path)
        _check(model, dense, path, torch.randn(shape))
        again: Any = load_sparse_into(_fresh(dense), path)
        assert again[0].activation_scale == scale
        assert saved.compressed == ["0.weight"]


@pytest.mark.parametrize("words", [VALUES, PAIRS], ids=["values", "pairs"])
@pytest.mark.parametrize(("dense", "shape"), LAYERS + OTHERS, ids=str)
def test_bfloat16_layers_come_back(
    words: dict[str, Any], dense: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = _sparse(dense, words)
    save_sparse(model, tmp_path / "model.safetensors")
    _check(model, dense, tmp_path / "model.safetensors", torch.randn(shape))


@pytest.mark.parametrize(
    "dense", [nn.LSTM(6, 8, proj_size=4), nn.GRU(6, 8), nn.LSTMCell(6, 8)], ids=str
)
def test_recurrent_layers_come_back(dense: nn.Module, tmp_path: Path) -> None:
    model = _sparse(dense, VALUES)
    save_sparse(model, tmp_path)
    _check(model, dense, tmp_path, torch.randn(3, 6))


ATTENTIONS = [
    nn.MultiheadAttention(16, 2, batch_first=True),
    nn.MultiheadAttention(16, 2, bias=False, batch_first=True),
    nn.MultiheadAttention(16, 2, kdim=12, vdim=12, batch_first=True),
]


class Attends(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.attention(x, y, y)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("words", [{}, INT8], ids=["float32", "int8"])
@pytest.mark.parametrize("dense", ATTENTIONS, ids=str)
def test_attentions_come_back(
    dense: Any, words: dict[str, Any], separate: bool, tmp_path: Path
) -> None:
    dense = copy.deepcopy(dense)
    for weight in dense.parameters():
        if weight.dim() == 2:
            weight.data = sparse_weight(tuple(weight.shape), 0.3)
    sparse = sparseinfer.SparseMultiheadAttention.from_dense(dense, separate=separate, **words)
    model = Attends(sparse).eval()
    save_sparse(model, tmp_path)
    keys = torch.randn(2, 3, dense.kdim)
    plain, found = to_dense(model).state_dict(), load_sparse(tmp_path)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    again = load_sparse_into(Attends(copy.deepcopy(dense)).eval(), tmp_path)
    x = torch.randn(2, 5, 16)
    if words:
        assert torch.equal(again(x, keys), model(x, keys))
    else:
        torch.testing.assert_close(again(x, keys), model(x, keys))
    assert bool(list(packed_layers(again))) == bool(words)


def test_parts_of_an_attention_that_are_not_alike_are_stored_dense(tmp_path: Path) -> None:
    dense = ATTENTIONS[0]
    sparse = sparseinfer.SparseMultiheadAttention.from_dense(dense, separate=True, **INT8)
    sparse.q_proj = sparse.q_proj.to_dense()
    save_sparse(Attends(sparse), tmp_path)
    found = load_sparse(tmp_path)
    assert torch.equal(found["attention.in_proj_weight"], sparse.in_proj_weight)
    again: Any = load_sparse_into(Attends(copy.deepcopy(dense)), tmp_path)
    assert {name for name, _ in packed_layers(again)} == {"attention.out_proj"}


def test_a_layer_of_torchs_dense_kernel_comes_back(tmp_path: Path) -> None:
    model: Any = _sparse(nn.Linear(40, 24), INT8, SCALE)
    model[0].run_dense()
    save_sparse(model, tmp_path)
    again: Any = load_sparse_into(_fresh(nn.Linear(40, 24)), tmp_path)
    assert again[0].runs_dense and again[0].activation_scale == SCALE


class Net(nn.Module):
    """An int8 layer under two names, a float32 sparse layer, and a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(64, 64)
        self.again = self.one
        self.two = nn.Linear(64, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.again(self.one(x))))  # type: ignore[no-any-return]


def _net() -> Any:
    torch.manual_seed(0)
    net = Net().eval()
    for layer in (net.one, net.two):
        layer.weight.data = sparse_weight((64, 64), 0.1)
    linear = sparseinfer.SparseLinear
    narrow = linear.from_dense(net.one, weights="int8", input_scale=SCALE)
    return replace(net, {net.one: narrow, net.two: linear.from_dense(net.two)})


def test_models_of_mixed_layers_come_back(tmp_path: Path) -> None:
    net, x = _net(), torch.randn(3, 64)
    expected = net(x)
    for name, given in (("module", net), ("state", net.state_dict())):
        saved = save_sparse(given, tmp_path / name)
        assert set(saved.compressed) == {"one.weight", "two.weight"}
        again: Any = load_sparse_into(Net().eval(), tmp_path / name)
        assert again.again is again.one and again.one.activation_scale == SCALE
        assert type(again.two) is nn.Linear and torch.equal(again.two.weight, net.two.weight)
        torch.testing.assert_close(again(x), expected)
        copied = load_converted(Net().eval(), tmp_path / name)
        assert copied.again is copied.one and torch.equal(copied(x), again(x))
        found = load_sparse(tmp_path / name)
        assert found.keys() == Net().state_dict().keys()
        assert torch.equal(found["again.weight"], net.one.dense_weight())
    inspected = {facts.name: facts for facts in inspect_checkpoint(tmp_path / "module").tensors}
    assert inspected["one.weight"].stored == "packed"
    stored = load_file(tmp_path / "module" / "model.safetensors")
    parts = [own for name, own in stored.items() if name.startswith("one.packed")]
    assert inspected["one.weight"].bytes == sum(own.numel() * own.itemsize for own in parts)


def test_models_that_are_sparse_take_packed_weights(tmp_path: Path) -> None:
    model = _sparse(nn.Linear(40, 24), INT8, SCALE)
    other: Any = _sparse(nn.Linear(40, 24), INT8)
    save_sparse(model, tmp_path)
    x = torch.randn(3, 40)
    assert torch.equal(load_sparse_into(other, tmp_path)(x), model(x))
    assert other[0].activation_scale == SCALE
    smaller = _sparse(nn.Linear(20, 24), INT8)
    with pytest.raises(CheckpointError, match=r"expected a packed weight of shape \[24, 20\]"):
        load_sparse_into(smaller, tmp_path)


def test_a_single_layer_becomes_another_object(tmp_path: Path) -> None:
    sparse = sparseinfer.SparseLinear.from_dense(nn.Linear(8, 4), weights="int8")
    save_sparse(sparse, tmp_path)
    again = load_sparse_into(nn.Linear(8, 4), tmp_path)
    x = torch.randn(3, 8)
    assert isinstance(again, sparseinfer.SparseLinear) and torch.equal(again(x), sparse(x))


def test_a_model_in_bfloat16_is_stored_as_bitmasks(tmp_path: Path) -> None:
    dense = nn.Linear(64, 32).bfloat16()
    model: Any = _sparse(dense, {})
    save_sparse(model, tmp_path)
    again: Any = load_sparse_into(_fresh(dense), tmp_path)
    assert type(again[0]) is nn.Linear and again[0].weight.dtype is torch.bfloat16
    assert "0.compressed" in load_file(tmp_path / "model.safetensors")


def test_files_with_float32_values_are_read_as_before(tmp_path: Path) -> None:
    """As save_sparse wrote int8 layers once, and writes them for compressed-tensors."""
    model: Any = _sparse(nn.Linear(64, 32), INT8, SCALE)
    for name, given in (("module", model), ("state", model.state_dict())):
        save_sparse(given, tmp_path / name, exact_layout=True)
        stored = load_file(tmp_path / name / "model.safetensors")
        assert "0.compressed" in stored and not any("packed" in key for key in stored)
        again: Any = load_sparse_into(_fresh(nn.Linear(64, 32)), tmp_path / name)
        assert type(again[0]) is nn.Linear
        assert torch.equal(again[0].weight, model[0].dense_weight())
    torch.save(model.state_dict(), tmp_path / "model.pth")
    for again in (
        load_converted(_fresh(nn.Linear(64, 32)), tmp_path / "model.pth"),
        load_sparse_into(_fresh(nn.Linear(64, 32)), tmp_path / "model.pth"),
    ):
        x = torch.randn(3, 64)
        assert torch.equal(again(x), model(x))


def test_pruning_a_file_of_int8_gives_float32(tmp_path: Path) -> None:
    model: Any = _sparse(nn.Linear(64, 32), INT8, SCALE)
    save_sparse(model, tmp_path / "narrow")
    recipe = sparseinfer.checkpoints.Recipe(amount=0.9)
    for form in ("dense", "sparse"):
        out = tmp_path / form
        sparseinfer.checkpoints.prune_checkpoint(tmp_path / "narrow", recipe, out, format=form)
        assert int((load_sparse(out)["0.weight"] == 0).sum()) >= int(0.9 * 64 * 32)
        config = json.loads((out / "config.json").read_text())
        assert not config.get("quantization_config", {}).get("packed")
        assert type(load_sparse_into(_fresh(nn.Linear(64, 32)), out)[0]) is nn.Linear  # type: ignore[index]


# ---- hostile files -----------------------------------------------------------------------------


def _file(tmp_path: Path) -> Path:
    """A file that holds the panels of a layer, as for weights in blocks."""
    model: Any = _sparse(nn.Linear(40, 24), INT8, SCALE)
    path = tmp_path / "model.safetensors"
    save_sparse(model, path)
    integers: dict[str, Any] = {f"0.packed{suffix}": None for suffix in SUFFIXES}
    _changed(path, {**integers, "0.packed": model[0].packed.clone()}, {"integers": {}})
    _check(model, nn.Linear(40, 24), path, torch.randn(3, 40))
    return path


def _changed(path: Path, tensors: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    """The file with other tensors (None: without one) or another layout."""
    with safe_open(path, "pt") as stream:
        header = dict(stream.metadata())
    state = {**load_file(path), **tensors}
    if metadata is not None:
        header[LAYOUT] = json.dumps({**json.loads(header[LAYOUT]), **metadata})
    save_file({name: value for name, value in state.items() if value is not None}, path, header)


def _refused(path: Path, dense: nn.Module, match: str) -> None:
    """Reading it into a model raises, and leaves the model as it was."""
    fresh: Any = _fresh(dense)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(CheckpointError, match=match):
        load_sparse_into(fresh, path)
    assert type(fresh[0]) is type(dense)
    assert all(torch.equal(before[name], own) for name, own in fresh.state_dict().items())


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"0.input_scale": torch.tensor(0.0)}, "expected a scale of activations of"),
        ({"0.input_scale": torch.tensor(float("nan"))}, "expected a scale of activations of"),
        ({"0.input_scale": torch.tensor(2.0**60)}, "expected a scale of activations of"),
        ({"0.input_scale": torch.ones(2)}, r"of one element, got \[2\]"),
        ({"0.input_zero_point": torch.tensor(256)}, "expected a zero point from 0 to 255"),
        ({"0.input_zero_point": None}, "of one element, got NoneType"),
        ({"0.dense_kernel": torch.ones(3)}, "expected a tensor of one element"),
        ({"0.bias": torch.ones(3)}, r"0\.bias: expected the shape \[24\]"),
        ({"0.bias": None}, r"expected a tensor 0\.bias"),
        (
            {"1.packed": sparseinfer.pack(torch.eye(4), weights="int8")},
            r"expected no tensor 1\.packed",
        ),
        ({"0.packed": sparseinfer.pack(torch.eye(24), weights="int8")}, r"of shape \[24, 40\]"),
        ({"0.weight": torch.ones(24, 40)}, r"0\.weight: expected one tensor of this name"),
    ],
)
def test_damaged_entries_are_refused(tensors: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = _file(tmp_path)
    _changed(path, tensors)
    _refused(path, nn.Linear(40, 24), match)


def test_every_damaged_byte_of_a_packed_weight_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    packed = load_file(path)["0.packed"]
    for place in range(8, packed.numel(), 97):
        damaged = packed.clone()
        damaged[place] ^= 0x55
        _changed(path, {"0.packed": damaged})
        for read in (load_sparse, inspect_checkpoint):
            with pytest.raises(CheckpointError, match=r"0\.packed: "):
                read(path)
        _refused(path, nn.Linear(40, 24), r"0\.packed: ")


def test_files_that_end_early_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    whole = path.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (start, start + 1, (start + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        _refused(path, nn.Linear(40, 24), "expected a safetensors file")


def _integers(tmp_path: Path) -> Path:
    """A file that holds the integers of a layer, for they take less than its panels."""
    save_sparse(_sparse(nn.Linear(512, 64), INT8, SCALE), tmp_path / "model.safetensors")
    assert "0.packed_values" in load_file(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "dense", [nn.Linear(512, 64), nn.Conv2d(32, 48, 3, groups=2), nn.Conv1d(64, 32, 5)], ids=str
)
def test_integers_are_packed_again_as_they_were(dense: Any, tmp_path: Path) -> None:
    model = _sparse(dense, INT8, SCALE)
    save_sparse(model, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert not any(name.endswith("packed") for name in stored)
    assert sum(own.numel() * own.itemsize for own in stored.values()) < sum(
        own.numel() * own.itemsize for own in model.state_dict().values()
    )
    shape = (
        (3, 512)
        if isinstance(dense, nn.Linear)
        else (2, dense.in_channels, 9, 9)[: dense.weight.dim()]
    )
    _check(model, dense, tmp_path / "model.safetensors", torch.randn(shape))
    copied = load_converted(_fresh(dense), tmp_path / "model.safetensors")
    x = torch.randn(shape)
    assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"0.packed_values": None}, "a dense torch.int8 tensor 0.packed_values, got none"),
        ({"0.packed_bitmask": None}, "tensor 0.packed_bitmask, got none"),
        ({"0.packed_scales": None}, "tensor 0.packed_scales, got none"),
        ({"0.packed_values": torch.ones(8, dtype=torch.int8)}, "as many values as bits"),
        ({"0.packed_values": torch.ones(8)}, "dense torch.int8 tensor"),
        ({"0.packed_bitmask": torch.zeros(64, 63, dtype=torch.uint8)}, "bits and scales of"),
        ({"0.packed_bitmask": torch.zeros(64, 64, dtype=torch.uint8)}, "as many values as bits"),
        ({"0.packed_scales": torch.ones(63)}, "bits and scales of"),
        ({"0.packed_scales": torch.zeros(64)}, "expected scales of 2.*got 0 for row 0"),
        ({"0.packed_scales": torch.full((64,), float("nan"))}, "got nan for row 0"),
        ({"0.packed_scales": torch.full((64,), 1e38)}, "expected scales of 2"),
        (
            {"0.packed": sparseinfer.pack(torch.eye(64, 512), weights="int8")},
            "one weight of this name",
        ),
    ],
)
def test_damaged_integers_are_refused(tensors: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = _integers(tmp_path)
    _changed(path, tensors)
    for read in (load_sparse, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=match):
            read(path)
    _refused(path, nn.Linear(512, 64), match)


@pytest.mark.parametrize(
    "row",
    [
        None, 3, {}, {"shape": [64, 512]}, {"shape": 3, "groups": 1},
        {"shape": [64, "x"], "groups": 1}, {"shape": [64, 511], "groups": 0},
        {"shape": [64, 513], "groups": 1}, {"shape": [64, 2**62, 2**62], "groups": 1},
        {"shape": [64], "groups": 1}, {"shape": [], "groups": 1}, {"shape": [64, 0], "groups": 1},
        {"shape": [64, 512], "groups": 3}, {"shape": [64, 512], "groups": 2**70},
        {"shape": [64, 512], "groups": -1}, {"shape": [1, 64, 512], "groups": 1},
        {"shape": [64, 2, 2, 2, 64], "groups": 1},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_layouts_of_integers_are_refused(row: Any, tmp_path: Path) -> None:
    path = _integers(tmp_path)
    _changed(path, {}, {"integers": {"0.packed": row}})
    _refused(path, nn.Linear(512, 64), "expected")
    _changed(path, {}, {"integers": {"1.packed": {"shape": [64, 512], "groups": 1}}})
    _refused(path, nn.Linear(512, 64), r"tensor 1\.packed_values, got none")


AXIS = {"kernel": 4, "stride": 2, "padding": 1, "dilation": 1}


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"parts": []},
        {"parts": 3},
        {"parts": ["0.packed", "0.packed"]},
        {"parts": ["absent"]},
        {"parts": ["0.bias"]},
        {"parts": ["0.packed"], "axes": 3},
        {"parts": ["0.packed"], "axes": [{"kernel": 4}]},
        {"parts": ["0.packed"], "groups": "many"},
        {"parts": ["0.packed"], "transposed": True},
        {"parts": ["0.packed"], "axes": [AXIS]},
        {"parts": ["0.packed"], "axes": [AXIS], "shape": [8, 6, 5]},
        {"parts": ["0.packed"], "axes": [AXIS], "shape": [8, 2**40, 4]},
        {"parts": ["0.packed"], "axes": [AXIS], "shape": [0, 6, 4]},
        {"parts": ["0.packed"], "axes": [AXIS], "shape": [8, 6, 4], "groups": 0},
        {"parts": ["0.packed"], "axes": [AXIS], "shape": [8, 6, 4], "groups": 2},
        {"parts": ["0.packed"], "axes": [AXIS, AXIS], "shape": [8, 6, 4]},
        {"parts": ["0.packed"], "axes": [{**AXIS, "stride": 0}], "shape": [8, 6, 4]},
        {"parts": ["0.packed"], "axes": [{**AXIS, "stride": 2**70}], "shape": [8, 6, 4]},
        {"parts": ["0.packed"], "axes": [{**AXIS, "padding": -1}], "shape": [8, 6, 4]},
        {"parts": ["0.packed"], "axes": [{**AXIS, "dilation": 2**70}], "shape": [8, 6, 4]},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_layouts_are_refused(row: dict[str, Any], tmp_path: Path) -> None:
    save_sparse(_sparse(OTHERS[0][0], VALUES), tmp_path / "model.safetensors")
    _changed(tmp_path / "model.safetensors", {}, {"packed": {"0.weight": row}})
    with pytest.raises(CheckpointError):
        load_sparse(tmp_path / "model.safetensors")


@pytest.mark.parametrize("packed", [[], 3, {"0.weight": None}, {"0.weight": 3}])
def test_layouts_of_another_form_are_refused(packed: Any, tmp_path: Path) -> None:
    path = _file(tmp_path)
    _changed(path, {}, {"packed": packed})
    for read in (load_sparse, lambda path: load_sparse_into(_fresh(nn.Linear(40, 24)), path)):
        with pytest.raises(CheckpointError, match="expected the metadata 'sparseinfer'"):
            read(path)
