"""save_sparse and load_sparse: smaller files, the same model back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

import sparseinfer
from sparseinfer.checkpoints import (
    CheckpointError,
    Recipe,
    load_sparse,
    load_sparse_into,
    prune_checkpoint,
    prune_state_dict,
    save_sparse,
)


class Net(nn.Module):
    """Linear, convolutions, an RNN, a norm, an embedding and a tied output layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.point = nn.Conv1d(32, 64, 1)
        self.norm = nn.BatchNorm2d(32)
        self.rnn = nn.LSTM(64, 64)
        self.fc = nn.Linear(64, 128)
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.embedding.weight


def pruned(sparsity=0.9):
    torch.manual_seed(0)
    model = Net().eval()
    prune_state_dict(model.state_dict(), Recipe(amount=sparsity, scope="layer"))
    return model


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype is tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_round_trip(tmp_path, name):
    model = pruned()
    saved = save_sparse(model, tmp_path / name)
    assert same(load_sparse(tmp_path / name), model.state_dict())
    assert saved.path == tmp_path / name
    assert {"conv.weight", "point.weight", "fc.weight", "rnn.weight_ih_l0"} <= {*saved.compressed}
    file = tmp_path / name if name.endswith("safetensors") else tmp_path / name / name_of_weights
    assert saved.stored_bytes <= file.stat().st_size <= saved.stored_bytes + 4000
    assert saved.dense_bytes == sum(t.numel() * t.element_size() for t in load_file_dense(model))
    restored = load_sparse_into(Net(), tmp_path / name)
    assert same(restored.state_dict(), model.state_dict())


name_of_weights = "model.safetensors"


def load_file_dense(model):
    """The tensors of a model, the tied ones once."""
    return {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()


@pytest.mark.parametrize(
    ("shape", "ratio"), [((768, 768), 0.135), ((3072, 768), 0.135), ((64, 64, 3, 3), 0.136)]
)
def test_a_weight_with_90_percent_zeros_takes_at_most_0_16_of_its_bytes(tmp_path, shape, ratio):
    state = {"fc.weight": torch.randn(shape)}
    prune_state_dict(state, Recipe(amount=0.9))
    saved = save_sparse(state, tmp_path / "model.safetensors")
    assert saved.stored_bytes / saved.dense_bytes <= ratio <= 0.16
    assert (tmp_path / "model.safetensors").stat().st_size <= 0.16 * saved.dense_bytes


def test_dense_tensors_are_stored_as_they_are(tmp_path):
    model = Net()
    saved = save_sparse(model, tmp_path / "model.safetensors")
    assert saved.compressed == [] and saved.stored_bytes == saved.dense_bytes
    stored = load_file(tmp_path / "model.safetensors")
    assert same(stored, {n: t for n, t in model.state_dict().items() if n != "head.weight"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(tmp_path, dtype):
    model = pruned().to(dtype)
    save_sparse(model, tmp_path / "model.safetensors")
    assert same(load_sparse(tmp_path / "model.safetensors"), model.state_dict())


def test_the_keys_are_those_of_compressed_tensors(tmp_path):
    save_sparse(pruned(), tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert {"fc.compressed", "fc.bitmask", "fc.shape", "fc.row_offsets", "fc.bias"} <= {*stored}
    assert "fc.weight" not in stored
    assert stored["fc.shape"].tolist() == [128, 64]
    assert stored["conv.shape"].tolist() == [32, 144]


def test_the_exact_layout_leaves_dense_what_the_layout_cannot_express(tmp_path):
    model = pruned()
    saved = save_sparse(model, tmp_path / "model.safetensors", exact_layout=True)
    assert saved.compressed == ["fc.weight"]
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["conv.weight"], model.conv.weight)
    assert same(load_sparse(tmp_path / "model.safetensors"), model.state_dict())


def test_the_config_describes_the_sparsity(tmp_path):
    save_sparse(pruned(0.75).fc, tmp_path / "bare")
    save_sparse(pruned(0.75), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    sparsity = config["sparsity_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert sparsity["format"] == "sparse-bitmask" and "fc" in sparsity["targets"]
    assert sparsity["global_sparsity"] == pytest.approx(0.75, abs=0.01)
    assert load_sparse(tmp_path / "bare").keys() == {"weight", "bias"}


def test_masks_and_parametrizations_of_a_module_are_applied(tmp_path):
    from torch.ao.pruning import WeightNormSparsifier

    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    prune.l1_unstructured(model[0], "weight", 0.9)
    sparsifier = WeightNormSparsifier(sparsity_level=0.5)
    sparsifier.prepare(model, config=[{"tensor_fqn": "1.weight"}])
    sparsifier.step()
    save_sparse(model, tmp_path / "model")
    found = load_sparse(tmp_path / "model")
    assert set(found) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for i in (0, 1):
        assert torch.equal(found[f"{i}.weight"], model[i].weight)


def test_a_converted_model_is_unpacked_and_converts_again(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    model[3] = model[2]
    prune_state_dict(model.state_dict(), Recipe(amount=0.8))
    sparse = sparseinfer.convert_to_sparse(model.eval(), min_speedup=0)
    assert isinstance(sparse[0], sparseinfer.SparseConv2d)
    save_sparse(sparse, tmp_path / "from_module")
    save_sparse(sparse.state_dict(), tmp_path / "from_state")
    for folder in ("from_module", "from_state"):
        assert same(load_sparse(tmp_path / folder), model.state_dict())
    dense = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    load_sparse_into(dense, tmp_path / "from_module")
    again = sparseinfer.convert_to_sparse(dense.eval(), min_speedup=0)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(again(x), model(x))


def test_a_damaged_packed_buffer_is_refused(tmp_path):
    packed = sparseinfer.pack(torch.eye(64))
    packed[200] ^= 1
    with pytest.raises(CheckpointError, match=r"fc\.packed: "):
        save_sparse({"fc.packed": packed}, tmp_path / "model.safetensors")


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    model = pruned()
    save_sparse(model, tmp_path / "model")
    assert not any(
        name.startswith("head") for name in load_file(tmp_path / "model/model.safetensors")
    )
    found = load_sparse(tmp_path / "model")
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()


def test_a_transformers_model_goes_through(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=100, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense", max_shard_size="100kB")
    assert (tmp_path / "dense" / "model.safetensors.index.json").exists()
    result = prune_checkpoint(tmp_path / "dense", Recipe(amount=0.9), tmp_path / "pruned")
    assert result.sparsity == pytest.approx(0.9, abs=1e-4)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    save_sparse(model, tmp_path / "sparse")
    prune_checkpoint(tmp_path / "dense", Recipe(amount=0.9), tmp_path / "direct", format="sparse")
    tokens = torch.randint(0, 100, (1, 8))
    for folder in ("sparse", "direct"):
        config = AutoConfig.from_pretrained(tmp_path / folder)
        assert config.quantization_config["sparsity_config"]["format"] == "sparse-bitmask"
        restored = AutoModelForCausalLM.from_config(config).eval()
        load_sparse_into(restored, tmp_path / folder)
        assert torch.equal(restored(tokens).logits, model(tokens).logits)
        del config.quantization_config
        state = load_sparse(tmp_path / folder)
        direct = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state).eval()
        assert torch.equal(direct(tokens).logits, model(tokens).logits)
    assert (tmp_path / "direct" / "generation_config.json").exists()


def test_a_sparse_folder_can_be_pruned_to_a_dense_one(tmp_path):
    save_sparse(pruned(0.5), tmp_path / "sparse")
    prune_checkpoint(tmp_path / "sparse", Recipe(amount=0.9, scope="layer"), tmp_path / "dense")
    stored = load_file(tmp_path / "dense" / "model.safetensors")
    assert "fc.weight" in stored and "fc.bitmask" not in stored
    assert "sparsity_config" not in (tmp_path / "dense" / "config.json").read_text()
    with safe_open(tmp_path / "dense" / "model.safetensors", "pt") as stream:
        assert stream.metadata() == {"format": "pt"}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl"])
def test_never_a_pickle(tmp_path, suffix):
    with pytest.raises(CheckpointError, match=r"try model\.safetensors"):
        save_sparse(Net(), tmp_path / f"model{suffix}")


def test_weights_of_another_kind_beside_are_refused(tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"got pytorch_model\.bin; try another folder"):
        save_sparse(Net(), tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "expected a model or a state_dict, got no tensor"),
        ({"a.weight": torch.eye(4).to_sparse()}, "expected a dense tensor with values"),
        ({"a.weight": torch.empty(4, 4, device="meta")}, "expected a dense tensor with values"),
    ],
)
def test_what_cannot_be_saved(tmp_path, state, message):
    with pytest.raises(CheckpointError, match=message):
        save_sparse(state, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_entries_that_are_no_tensors_are_left_out_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="_extra_state: left out"):
        save_sparse({"a.weight": torch.eye(4), "_extra_state": "x"}, tmp_path / "m.safetensors")
    assert load_sparse(tmp_path / "m.safetensors").keys() == {"a.weight"}


def test_names_that_would_clash_stay_dense(tmp_path):
    sparse = torch.eye(64)
    state = {
        "a": sparse, "a.weight": sparse * 2, "b.weight": sparse * 3, "b.shape": torch.ones(2),
        "c.weight.weight": sparse * 4, "weight": sparse * 5,
    }  # fmt: skip
    save_sparse(state, tmp_path / "model.safetensors")
    assert same(load_sparse(tmp_path / "model.safetensors"), state)


def test_a_crash_in_mid_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_sparse(pruned(), path)
    before = path.read_bytes()
    script = f"""
        import os, signal, torch, safetensors.torch, sparseinfer
        def half(tensors, target, metadata):
            with open(target, "wb") as stream:
                stream.write(b"half of a file")
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        safetensors.torch.save_file = half
        sparseinfer.save_sparse({{"fc.weight": torch.eye(64)}}, {str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL and path.read_bytes() == before


# --- loading


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", '{"tensors": {}}', '{"tensors": [], "aliases": {}}',
        '{"tensors": {"conv": {"name": "conv.weight"}}, "aliases": {}}',
        '{"tensors": {"conv": {"name": "conv.weight", "shape": ["x"]}}, "aliases": {}}',
        '{"tensors": {"conv": {"name": "conv.weight", "shape": [32, 16, 3, 4]}}, "aliases": {}}',
        '{"tensors": {"conv": {"name": "conv.weight", "shape": [-32, -144]}}, "aliases": {}}',
        '{"tensors": {"conv": {"name": "fc.bias", "shape": [32, 144]}}, "aliases": {}}',
    ],
)  # fmt: skip
def test_hostile_metadata(tmp_path, content):
    path = tmp_path / "model.safetensors"
    save_sparse(pruned(), path)
    save_file(load_file(path), path, {"sparseinfer": content})
    with pytest.raises(CheckpointError, match="expected"):
        load_sparse(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": torch.ones(3, 3)}, r"fc\.weight: expected the shape \[128, 64\]"),
        ({"fc.weight": None}, "expected a tensor fc.weight, as the model has it"),
        ({"extra.weight": torch.ones(3)}, "expected no tensor extra.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, change, message):
    state = {**pruned().state_dict(), **change}
    save_sparse({n: t for n, t in state.items() if t is not None}, tmp_path / "m.safetensors")
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_sparse_into(model, tmp_path / "m.safetensors")
    assert same(model.state_dict(), before)


def test_a_model_on_the_meta_device_takes_over_the_tensors(tmp_path):
    model = pruned()
    save_sparse(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        skeleton = Net()
    assert same(
        load_sparse_into(skeleton, tmp_path / "m.safetensors").state_dict(), model.state_dict()
    )


def test_a_plain_pth_and_a_masked_one_load_too(tmp_path):
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    torch.save({"state_dict": layer.state_dict()}, tmp_path / "masked.pth")
    loaded = load_sparse_into(nn.Linear(8, 8), tmp_path / "masked.pth")
    assert torch.equal(loaded.weight, layer.weight)
