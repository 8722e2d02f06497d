"""Files in which tied tensors stand once, as safetensors and transformers write them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import sparseinfer
from sparseinfer import convert_to_sparse, load_converted, load_sparse_into
from sparseinfer.checkpoints.tied import with_tied


class Tied(nn.Module):
    """An output layer tied to the embedding, two layers tied to each other, and one layer twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight = self.one.weight
        self.again = self.three = nn.Linear(16, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.again(self.three(self.two(self.one(self.embed(x))))))


@pytest.fixture
def model():
    model = Tied().eval()
    with torch.no_grad():
        for layer in (model.one, model.three):
            layer.weight *= torch.rand(16, 16) < 0.2
    return model


def once(state):
    """The entries of a state_dict without those that share the memory of an earlier one."""
    found = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in {other.data_ptr() for other in found.values()}:
            found[name] = tensor
    return found


@pytest.mark.parametrize("writer", ["save_model", "once", "packed once"])
def test_converted_models_load_from_files_with_tied_tensors_once(tmp_path, model, writer):
    sparse = convert_to_sparse(model, min_speedup=0)
    path, x = tmp_path / "model.safetensors", torch.arange(8)
    if writer == "save_model":
        save_model(sparse, str(path))
    else:
        state = once(sparse.state_dict())
        if writer == "packed once":
            state.pop("two.packed", None)
        save_file(state, path)
    loaded = load_converted(Tied(), path)
    assert torch.equal(loaded(x), sparse(x))
    assert type(loaded.two) is type(sparse.two) and loaded.again is loaded.three


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_dense_models_load_from_files_with_tied_tensors_once(tmp_path, model, device):
    path, x = tmp_path / "model.safetensors", torch.arange(8)
    save_model(model, str(path))
    with torch.device(device):
        fresh = Tied().eval()
    assert torch.equal(load_sparse_into(fresh, path)(x), model(x))


def test_what_is_not_tied_is_still_missed(tmp_path, model):
    state = once(model.state_dict())
    state.pop("one.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected a tensor one.bias.*got 1 missing"):
        load_sparse_into(Tied(), tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"one\.bias"):
        load_converted(Tied(), tmp_path / "model.safetensors")
    assert with_tied(nn.Linear(2, 2), {}) == {}


def test_a_folder_by_save_pretrained_loads(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=16, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    dense = transformers.GPT2LMHeadModel(config).eval()
    dense.save_pretrained(tmp_path)
    assert "lm_head.weight" not in sparseinfer.load_sparse(tmp_path)
    fresh = transformers.GPT2LMHeadModel(config).eval()
    x = torch.arange(6)[None]
    for loaded in (load_converted(fresh, tmp_path), load_sparse_into(fresh, tmp_path)):
        assert torch.equal(loaded(x).logits, dense(x).logits)
