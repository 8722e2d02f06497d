"""The state of sparse layers: what loads into what, and what moves and copies do."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseinfer import SparseConv2d, SparseLinear, convert_to_sparse, load_converted
from sparseinfer.layers.base import SparseLayer

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleDict({"norm": nn.BatchNorm2d(8), "fc": nn.Linear(288, 16)})
        self.head = nn.Linear(16, 5)
        for layer in (self.conv, self.body["fc"]):
            layer.weight.data = sparse_weight(layer.weight.shape, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body["norm"](self.conv(x)).relu().flatten(1)
        return self.head(self.body["fc"](x).relu())


def _converted() -> Any:
    """A network whose conv and body.fc are sparse and whose head is dense."""
    network = _Network().eval()
    sparse: Any = copy.deepcopy(network)
    sparse.conv = SparseConv2d.from_dense(network.conv)
    sparse.body["fc"] = SparseLinear.from_dense(network.body["fc"])
    return sparse


def _layer(density: float = 0.3, **params: Any) -> tuple[nn.Linear, SparseLinear]:
    dense = nn.Linear(40, 16)
    dense.weight.data = sparse_weight(dense.weight.shape, density, nm=params.pop("nm", None))
    return dense, SparseLinear.from_dense(dense, **params)


# ---- dense weights into sparse layers ----------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_checkpoint_loads_into_a_converted_model(assign: bool) -> None:
    sparse, other = _converted(), _Network().eval()
    kinds = [type(module) for module in sparse.modules()]
    found = sparse.load_state_dict(other.state_dict(), assign=assign)
    assert not found.missing_keys and not found.unexpected_keys
    assert [type(module) for module in sparse.modules()] == kinds
    torch.testing.assert_close(sparse(X), other(X), rtol=1e-5, atol=1e-5)
    assert torch.equal(sparse.conv.weight, other.conv.weight)


def test_a_masked_checkpoint_loads_into_a_converted_layer() -> None:
    masked = prune.l1_unstructured(nn.Linear(40, 16), "weight", amount=0.8)
    prune.l1_unstructured(masked, "bias", amount=4)
    _, sparse = _layer()
    sparse.load_state_dict(masked.state_dict())
    assert torch.equal(sparse.weight, masked.weight) and torch.equal(sparse.bias, masked.bias)
    assert sparse.nnz == int(masked.weight_mask.sum())


def test_a_dense_weight_is_packed_as_the_layer_is() -> None:
    dense, _ = _layer(nm=(1, 4))
    state = dense.half().state_dict()
    for params in ({"format": "csr"}, {"format": "panel", "kblock": 32}, {"format": "nm"}):
        _, sparse = _layer(density=0.2, nm=(2, 4), **params)
        before = dict(sparse.handle.info["params"])
        sparse.load_state_dict(state)
        assert sparse.format == params["format"] and sparse.handle.info["params"] == before
        assert torch.equal(sparse.weight, dense.weight.float())
        assert sparse.bias.dtype is torch.float32


def test_a_packed_weight_goes_before_a_dense_one() -> None:
    dense, sparse = _layer()
    state = dict(sparse.state_dict())
    found = SparseLinear(40, 16).load_state_dict({**state, "weight": dense.weight}, strict=False)
    assert found.unexpected_keys == ["weight"] and not found.missing_keys


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"weight": torch.zeros(16, 41)}, r"While loading weight: .*\[16, 40\], got \[16, 41\]"),
        ({"weight": torch.zeros(16, 40).int()}, "While loading weight: .*torch.int32"),
        ({"weight": 3}, "While loading weight: .*got int"),
        ({"packed": 3}, "While loading packed: .*got int"),
        ({"packed": torch.zeros(500, dtype=torch.uint8)}, "While loading packed: .*corrupt"),
        ({"packed": torch.zeros(500)}, "While loading packed: .*uint8"),
    ],
)
def test_what_cannot_be_loaded_is_told_and_changes_no_weight(state: Any, text: str) -> None:
    _, sparse = _layer()
    before = sparse.weight
    state = {**state, "extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=text) as error:
        sparse.load_state_dict(state)
    assert 'Unexpected key(s) in state_dict: "extra"' in str(error.value)
    assert 'Missing key(s) in state_dict: "bias"' in str(error.value)
    assert torch.equal(sparse.weight, before)


def test_a_weight_that_the_format_cannot_store_is_told() -> None:
    _, sparse = _layer(format="nm", nm=(2, 4))
    with pytest.raises(RuntimeError, match="While loading weight: "):
        sparse.load_state_dict(nn.Linear(40, 16).state_dict())


# ---- converted weights into dense models --------------------------------------------------------


def test_a_converted_state_loads_into_a_fresh_model() -> None:
    sparse, fresh = _converted(), _Network().eval()
    before = copy.deepcopy(fresh.state_dict())
    loaded = load_converted(fresh, sparse.state_dict())
    assert torch.equal(loaded(X), sparse(X)) and not loaded.training
    assert isinstance(loaded.conv, SparseConv2d) and isinstance(loaded.body["fc"], SparseLinear)
    assert type(loaded.head) is nn.Linear
    after = fresh.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_it_loads_into_masked_converted_and_dense_models() -> None:
    sparse = _converted()
    masked = _Network().eval()
    prune.l1_unstructured(masked.conv, "weight", amount=0.5)
    dense_state = _Network().eval()
    assert torch.equal(load_converted(masked, sparse.state_dict())(X), sparse(X))
    assert torch.equal(load_converted(_converted(), sparse.state_dict())(X), sparse(X))
    loaded = load_converted(masked.eval(), {**prune_removed(masked), **dense_state.state_dict()})
    assert type(loaded.conv) is nn.Conv2d


def prune_removed(model: Any) -> dict[str, Tensor]:
    prune.remove(model.conv, "weight")
    return model.state_dict()


def test_it_loads_a_single_layer_a_shared_layer_and_training_models() -> None:
    dense, sparse = _layer()
    loaded = load_converted(nn.Linear(40, 16), sparse.state_dict())
    assert torch.equal(loaded.weight, dense.weight) and loaded.training
    shared = SparseLinear.from_dense(nn.Linear(8, 8))
    layer = nn.Linear(8, 8)
    twice = load_converted(nn.Sequential(layer, layer), nn.Sequential(shared, shared).state_dict())
    assert twice[0] is twice[1] and torch.equal(twice[0].weight, shared.weight)


def test_it_loads_into_a_model_without_memory() -> None:
    sparse = _converted()
    with torch.device("meta"):
        fresh = _Network().eval()
    loaded = load_converted(fresh, sparse.state_dict(), assign=True)
    assert torch.equal(loaded(X), sparse(X))
    assert loaded.conv.packed.data_ptr() == sparse.conv.packed.data_ptr()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_it_loads_files(tmp_path: Path, name: str) -> None:
    sparse, path = _converted(), tmp_path / name
    if name.endswith(".pt"):
        torch.save(sparse.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(sparse.state_dict(), path)
    for given in (path, str(path)):
        assert torch.equal(load_converted(_Network().eval(), given)(X), sparse(X))


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    torch.save(_converted(), tmp_path / "module.pt")
    with pytest.raises(Exception, match="weights_only"):
        load_converted(_Network(), tmp_path / "module.pt")


def test_what_does_not_fit_is_listed_and_changes_nothing() -> None:
    state = _converted().state_dict()
    packed = state["body.fc.packed"].clone()
    packed[300] ^= 1
    broken = {**state, "body.fc.packed": packed, "tail.packed": packed}
    del broken["head.bias"]
    fresh = _Network()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(RuntimeError) as error:
        load_converted(fresh, broken)
    for text in ("_Network", 'Missing key(s) in state_dict: "head.bias"', '"tail.packed"',
                 "While loading body.fc.packed", "corrupt"):  # fmt: skip
        assert text in str(error.value)
    assert type(fresh.conv) is nn.Conv2d
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    wide = nn.Linear(41, 16)
    with pytest.raises(RuntimeError, match=r"expected a packed weight of shape \[16, 41\]"):
        load_converted(wide, _layer()[1].state_dict())


def test_without_strict_it_logs_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    sparse = _converted()
    state = {**sparse.state_dict(), "tail.packed": torch.zeros(1)}
    del state["head.bias"]
    with caplog.at_level("WARNING", logger="sparseinfer"):
        loaded = load_converted(_Network(), state, strict=False)
    assert torch.equal(loaded.conv.weight, sparse.conv.weight)
    assert caplog.messages == ["missing keys: head.bias", "unexpected keys: tail.packed"]


def test_a_packed_key_at_a_layer_that_has_no_sparse_form_is_unexpected() -> None:
    state = {"0.packed": _layer()[1].packed}
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"0.packed\""):
        load_converted(nn.Sequential(nn.ReLU()), state)


def test_bad_arguments_to_load_converted() -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got OrderedDict"):
        load_converted(_converted().state_dict(), _converted().state_dict())
    with pytest.raises(TypeError, match="expected a state_dict, got list"):
        load_converted(_Network(), [])  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load_converted(_Network(), "no-such-file.pt")


def test_a_converted_model_saves_and_loads_smaller(tmp_path: Path) -> None:
    dense = _Network().eval()
    for layer in (dense.conv, dense.body["fc"]):
        layer.weight.data = sparse_weight(layer.weight.shape, 0.1)
    sparse = convert_to_sparse(dense, min_speedup=0)
    torch.save(sparse.state_dict(), tmp_path / "sparse.pt")
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    sizes = [(tmp_path / name).stat().st_size for name in ("sparse.pt", "dense.pt")]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = load_converted(_Network().eval(), tmp_path / "sparse.pt")
    assert torch.equal(loaded(X), sparse(X))


# ---- moves and copies ---------------------------------------------------------------------------


def test_a_whole_module_saves_and_loads() -> None:
    sparse, file = _converted(), io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(X), sparse(X))
    tampered = _converted()
    tampered.conv.packed[300] ^= 1
    file = io.BytesIO()
    torch.save(tampered, file)
    file.seek(0)
    with pytest.raises(ValueError, match="corrupt"):
        torch.load(file, weights_only=False)


def test_memory_that_nothing_was_loaded_into_is_not_run() -> None:
    _, sparse = _layer()
    x = torch.randn(3, 40)
    empty = copy.deepcopy(sparse).to("meta").to_empty(device="cpu")
    empty.packed.zero_()
    assert "bytes=" in repr(empty)
    with pytest.raises(ValueError, match="corrupt"):
        empty(x)
    empty.load_state_dict(sparse.state_dict())
    assert torch.equal(empty(x), sparse(x))
    again = copy.deepcopy(sparse).to("meta").to_empty(device="cpu")
    again.load_state_dict(nn.Linear(40, 16).state_dict())
    assert again.format == "panel"


def test_shared_memory_and_modes() -> None:
    _, sparse = _layer()
    x = torch.randn(3, 40)
    y = sparse(x)
    assert sparse.share_memory().packed.is_shared() and torch.equal(sparse(x), y)
    assert not sparse.eval().training and sparse.train().training
    assert torch.equal(sparse.to(memory_format=torch.channels_last)(x), y)
    assert torch.equal(sparse.to("cpu", torch.float32)(x), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_narrow_types_compute_in_float32(dtype: torch.dtype, activation: str, kind: str) -> None:
    dense: Any = nn.Linear(40, 16) if kind == "linear" else nn.Conv2d(4, 6, 3)
    x = torch.randn((3, 40) if kind == "linear" else (2, 4, 8, 8))
    cls: type[SparseLayer] = SparseLinear if kind == "linear" else SparseConv2d
    dense.weight.data = sparse_weight(dense.weight.shape, 0.3)
    sparse: Any = cls.from_dense(dense, activation=activation)
    narrow = copy.deepcopy(sparse).to(dtype)
    assert narrow.packed.dtype is torch.uint8 and narrow.bias.dtype is dtype
    assert torch.equal(narrow.weight, sparse.weight.to(dtype))
    assert torch.equal(narrow.dense_weight(), sparse.dense_weight())
    sparse.bias.data = narrow.bias.data.float()
    given = x.to(dtype).requires_grad_()
    y = narrow(given)
    assert torch.equal(y, sparse(given.float()).to(dtype))
    y.sum().backward()
    assert given.grad is not None and given.grad.dtype is dtype
    assert narrow.bias.grad.dtype is dtype
    assert torch.equal(narrow.float()(x), sparse(x))
    if activation == "none":
        assert dense.to(dtype)(given).dtype is y.dtype


def test_types_that_do_not_go_together_raise_as_dense_does() -> None:
    dense, sparse = _layer()
    x = torch.randn(3, 40)
    narrow = copy.deepcopy(sparse).half()
    for module, given in ((narrow, x), (sparse, x.half()), (sparse, x.double()),
                          (copy.deepcopy(sparse).double(), x.double())):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"float32.*; try"):
            module(given)
    for module, given in ((copy.deepcopy(dense).half(), x), (dense, x.half())):
        with pytest.raises(RuntimeError, match="same dtype"):
            module(given)
    image = torch.randn(1, 4, 8, 8)
    conv = SparseConv2d(4, 6, 3)
    for given in (image.half(), image.double(), image.long()):
        with pytest.raises(RuntimeError, match=r"Input type .* should be the same.*; try"):
            conv(given)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_autocast_gives_the_type_that_dense_gives(kind: str) -> None:
    dense: Any = nn.Linear(40, 16) if kind == "linear" else nn.Conv2d(4, 6, 3)
    x = torch.randn((3, 40) if kind == "linear" else (2, 4, 8, 8))
    sparse: Any = (SparseLinear if kind == "linear" else SparseConv2d).from_dense(dense)
    for dtype in (torch.bfloat16, torch.float16):
        for given in (x, x.to(dtype)):
            with torch.autocast("cpu", dtype=dtype):
                y, expected = sparse(given), dense(given)
            assert y.dtype is expected.dtype is dtype
            assert torch.equal(y, sparse(given.float()).to(dtype))
    x.requires_grad_()
    with torch.autocast("cpu"):
        sparse(x).sum().backward()
    assert x.grad.dtype is torch.float32 and sparse.bias.grad.dtype is torch.float32
    with torch.autocast("cpu", enabled=False):
        assert sparse(x).dtype is torch.float32


def test_a_dense_weight_loads_without_its_bias() -> None:
    dense, sparse = _layer()
    sparse.load_state_dict({"weight": 2 * dense.weight}, strict=False)
    assert torch.equal(sparse.weight, 2 * dense.weight)


class _Attending(nn.Module):
    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        sizes = {"kdim": 12, "vdim": 10} if apart else {}
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **sizes)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attention(query, key, value)[0]


@pytest.mark.parametrize("apart", [False, True])
def test_states_of_attentions_cross_over(apart: bool) -> None:
    query = torch.randn(2, 5, 16)
    inputs = (query, torch.randn(2, 5, 12), torch.randn(2, 5, 10)) if apart else (query,) * 3
    model = _Attending(apart).eval()
    sparse = convert_to_sparse(model, min_speedup=0)
    with torch.no_grad():
        loaded = load_converted(_Attending(apart).eval(), sparse.state_dict())
        torch.testing.assert_close(loaded(*inputs), sparse(*inputs))
        other = _Attending(apart).eval()
        prune.l1_unstructured(other.attention.out_proj, "weight", amount=0.5)
        sparse.load_state_dict(other.state_dict())
        torch.testing.assert_close(sparse(*inputs), other(*inputs), rtol=1e-5, atol=1e-5)


def test_states_of_conv1d_of_transformers_cross_over() -> None:
    conv1d = pytest.importorskip("transformers").pytorch_utils.Conv1D
    for shape in ((32, 32), (16, 32)):
        model, other = nn.Sequential(conv1d(*shape)), nn.Sequential(conv1d(*shape))
        sparse, x = convert_to_sparse(model, min_speedup=0), torch.randn(3, shape[1])
        with torch.no_grad():
            loaded = load_converted(nn.Sequential(conv1d(*shape)), sparse.state_dict())
            torch.testing.assert_close(loaded(x), sparse(x))
            sparse.load_state_dict(other.state_dict())
            torch.testing.assert_close(sparse(x), other(x), rtol=1e-5, atol=1e-5)


def test_a_dense_weight_is_rounded_where_the_layer_keeps_bfloat16() -> None:
    sparse = SparseLinear.from_dense(nn.Linear(32, 16), weights="bfloat16")
    dense = nn.Linear(32, 16)
    sparse.load_state_dict(dense.state_dict())
    assert sparse.handle.info["value_type"] == "bfloat16"
    assert torch.equal(sparse.dense_weight(), dense.weight.detach().bfloat16().float())


def test_hooks_on_the_state_move_along() -> None:
    model, called = nn.Sequential(nn.Linear(8, 8)), []
    model[0].register_load_state_dict_post_hook(lambda module, keys: called.append(module))
    sparse = convert_to_sparse(model, min_speedup=0)
    sparse.load_state_dict(sparse.state_dict())
    assert called == [sparse[0]]
