"""Transformers as engines: torch's encoder, BERT and its kin, saved, loaded elsewhere, and run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import check_elsewhere
from marks import some_slow
from torch import Tensor, nn

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.errors import UnsupportedOperators
from sparseinfer.export.signature import tensors_of

Inputs = dict[str, Tensor]
Made = tuple[nn.Module, Inputs]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pruned(model: nn.Module, sparsity: float = 0.7) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape) >= sparsity
    return model.eval()


def ops(engine: Engine) -> list[str]:
    return [node["op"] for node in engine.report().nodes if node["runs"]]


def close(engine: Engine, model: nn.Module, inputs: Inputs) -> bool:
    given, own = tensors_of(engine(**inputs)), tensors_of(model(**inputs))
    return all(torch.allclose(a, b, atol=2e-5) for a, b in zip(given, own, strict=True))


def tokens(batch: int = 2, length: int = 7, words: int = 50) -> Inputs:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length - 2 :] = 0
    return {"input_ids": torch.randint(words, (batch, length)), "attention_mask": mask}


def bert(full: bool = False) -> Made:
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 20,
    }  # fmt: skip
    config = transformers.BertConfig(**({} if full else small))
    model = transformers.BertModel(config, add_pooling_layer=False)
    return pruned(model), tokens(length=128 if full else 7)


def minilm() -> Made:
    """Of all-MiniLM-L6-v2 the shape: heads of 32 features; three types of input."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=96, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=128,
    )  # fmt: skip
    inputs = {**tokens(1, 19), "token_type_ids": torch.randint(2, (1, 19))}
    return pruned(transformers.BertModel(config, add_pooling_layer=False)), inputs


def distilbert() -> Made:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=24, n_layers=2, n_heads=3, hidden_dim=48, max_position_embeddings=20
    )
    return pruned(transformers.DistilBertModel(config)), tokens()


def classifier() -> Made:
    """With what BERT does after its last layer: the first token, and two layers more."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=20, num_labels=5,
    )  # fmt: skip
    return pruned(transformers.BertForSequenceClassification(config)), tokens()


def vit(full: bool = False) -> Made:
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = transformers.ViTConfig(num_labels=10, **({} if full else small))
    model = pruned(transformers.ViTForImageClassification(config))
    images = torch.randn(1 if full else 2, 3, config.image_size, config.image_size)
    return model, {"pixel_values": images}


def gpt2() -> Made:
    """The prefill of a language model: its mask, and what only positions decide, are one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=20, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "mlp" in name:
            weight.data *= torch.rand(weight.shape) >= 0.7
    return model, tokens()


def t5() -> Made:
    """Norms without a mean, and biases by how far apart two tokens stand."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    return pruned(transformers.T5EncoderModel(config)), tokens()


MODELS = [bert, minilm, distilbert, classifier, vit, gpt2, t5]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_torch_encoders(batch_first: bool, norm_first: bool, batch: int) -> None:
    layer = nn.TransformerEncoderLayer(
        24, 3, 48, batch_first=batch_first, norm_first=norm_first, activation="gelu"
    )
    model = pruned(nn.TransformerEncoder(layer, 2, nn.LayerNorm(24), enable_nested_tensor=False))
    x = torch.randn((batch, 6, 24) if batch_first else (6, batch, 24))
    engine = compile(model, x, baselines=())
    assert close(engine, model, {"src": x})
    # Nothing is turned around, and the three projections are one as torch keeps them.
    assert ops(engine)[:2] == ["layer_norm", "linear"] if norm_first else ["linear", "attention"]
    assert ops(engine).count("linear") == 8 and "permute" not in ops(engine)
    assert ops(engine).count("attention") == 2


def test_torch_masks() -> None:
    layer = nn.TransformerEncoderLayer(24, 3, 48, batch_first=True)
    model = pruned(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    x, padding = torch.randn(2, 6, 24), torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    engine = compile(model, {"src": x, "src_key_padding_mask": padding}, baselines=())
    for mask in (padding, padding.flip(0), torch.zeros_like(padding)):
        assert close(engine, model, {"src": x, "src_key_padding_mask": mask})
    with pytest.raises(TypeError, match=r"expected bool .* got torch.int64 .* try .bool\(\)"):
        engine(src=x, src_key_padding_mask=padding.long())


@pytest.mark.parametrize("told", [True, False])
def test_masks_of_positions_are_constants(told: bool) -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(24, 3, 48, batch_first=True)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

        def forward(self, src: Tensor) -> Any:
            return self.layer(src, src_mask=self.mask, is_causal=told)

    model, x = pruned(Causal()), torch.randn(2, 6, 24)
    engine = compile(model, x, baselines=())
    assert close(engine, model, {"src": x}) and "where" not in ops(engine)
    changed = x.clone()
    changed[:, 4:] = 0
    assert torch.equal(engine(x)[:, :4], engine(changed)[:, :4])


def test_attention_modules() -> None:
    """Queries of other tensors than the keys', and of other lengths."""

    class Crosses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True, kdim=12, vdim=20)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(q, k, v, need_weights=False)[0]

    model = pruned(Crosses())
    inputs = {"q": torch.randn(2, 5, 16), "k": torch.randn(2, 9, 12), "v": torch.randn(2, 9, 20)}
    engine = compile(model, inputs, baselines=())
    assert close(engine, model, inputs) and ops(engine).count("attention") == 1


@pytest.mark.parametrize("make", some_slow(MODELS, "bert"))
def test_models_of_transformers(make: Callable[[], Made], tmp_path: Path) -> None:
    model, inputs = make()
    engine = compile(model, inputs, baselines=(), golden=True)
    assert engine.selftest() < 1
    found = ops(engine)
    # Patches become tokens once, and nothing else is turned around.
    assert found.count("permute") == (make is vit) and found.count("attention") == 2
    # One projection for the three of a layer, and norms after a sum are one with it.
    assert found[found.index("attention") - 1] in ("linear", "where")
    assert "add" not in found[found.index("attention") :] or make in (vit, gpt2, t5)
    assert "activation" not in found
    other = {name: x.flip(0, 1) for name, x in inputs.items()}
    if "attention_mask" in inputs:
        other["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    assert close(engine, model, other)
    compared = engine.compare(model, inputs)
    assert compared.first is None, str(compared)
    check_elsewhere(engine, inputs, tmp_path)


def test_ids_and_masks_are_checked() -> None:
    model, inputs = bert()
    engine = compile(model, inputs, baselines=())
    for bad in (-1, 50, 2**62):
        ids = inputs["input_ids"].clone()
        ids[1, 3] = bad
        with pytest.raises(ValueError, match=rf"ids of 'input_ids' from 0 to 49, got {bad}"):
            engine(**{**inputs, "input_ids": ids})
    with pytest.raises(TypeError, match=r"expected int64 .* got torch.int32 .* try .long\(\)"):
        engine(**{**inputs, "input_ids": inputs["input_ids"].int()})
    with pytest.raises(TypeError, match=r"expected int64 .* got torch.float32"):
        engine(**{**inputs, "attention_mask": inputs["attention_mask"].float()})
    # It is taken as true wherever it is not zero, as the model takes it.
    twice = {**inputs, "attention_mask": 2 * inputs["attention_mask"]}
    assert close(engine, model, twice)


class Arithmetic(nn.Module):
    """A mask as older models compute it: numbers that are added."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.projection, self.least = nn.Linear(8, 24), least

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.projection(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        extended = (1.0 - mask[:, None, None, :].to(torch.float32)) * self.least
        y = nn.functional.scaled_dot_product_attention(*parts.unbind(0), attn_mask=extended)
        return y.transpose(1, 2).reshape(batch, length, 8)


@pytest.mark.parametrize("least", [-10000.0, torch.finfo(torch.float32).min])
def test_arithmetic_on_masks_promises_zeros_and_ones(least: float) -> None:
    model = Arithmetic(least).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    inputs = {"x": torch.randn(3, 5, 8), "mask": mask}
    engine = compile(model, inputs, baselines=())
    assert close(engine, model, inputs) and "where" in ops(engine)
    with pytest.raises(ValueError, match="expected 0 or 1 in 'mask', got 3"):
        engine(x=inputs["x"], mask=3 * mask)


def test_what_is_refused_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 8)

        def forward(self, ids: Tensor) -> Any:
            x = self.table(ids)
            return x.cumsum(1), x.sort(), ids + ids

    with pytest.raises(UnsupportedOperators) as error:
        compile(Odd().eval(), torch.zeros(2, 3, dtype=torch.long))
    told = str(error.value)
    assert "aten.cumsum.default" in told and "aten.sort.default" in told
    assert "aten.add.Tensor" in told and len(error.value.missing) >= 3

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.attention(x, x, x)

    with pytest.raises(UnsupportedOperators, match="in 'attention'"):
        compile(Weights().eval(), torch.randn(1, 3, 8))


def test_int8() -> None:
    """Linear layers compute on bytes; attention and norms stay between floats."""
    model, inputs = classifier()
    more = [{**inputs, "input_ids": torch.randint(50, (2, 7))} for _ in range(4)]
    engine = compile(model, inputs, baselines=(), weights="int8", calibration=more)
    found = ops(engine)
    assert found.count("quantize") >= 6 and found.count("attention") == 2
    given, own = engine(**inputs).logits, model(**inputs).logits
    assert (given - own).norm() <= 0.1 * own.norm()
    with pytest.raises(TypeError, match=r"expected int64 for input_ids, got torch.int32; try"):
        bad = [{**inputs, "input_ids": inputs["input_ids"].int()}]
        compile(model, inputs, baselines=(), weights="int8", calibration=bad)


@pytest.mark.slow
@pytest.mark.parametrize("make", [bert, vit])
def test_full_models(make: Callable[[bool], Made]) -> None:
    model, inputs = make(True)
    engine = compile(model, inputs, baselines=())
    assert ops(engine).count("attention") == 12
    assert engine.compare(model, inputs).first is None


def test_mapped_files(tmp_path: Path) -> None:
    model, inputs = distilbert()
    engine = compile(model, inputs, baselines=())
    engine.save(tmp_path / "model.sinf")
    mapped = load_engine(tmp_path / "model.sinf", mmap=True)
    assert all(map(torch.equal, tensors_of(mapped(**inputs)), tensors_of(engine(**inputs))))
