"""ConvNeXt, Swin, Llama's prefill and Whisper's encoder as engines: norms, windows, rotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from elsewhere import check_elsewhere
from marks import some_slow
from test_transformer_networks import Arithmetic, Made, close, ops, pruned, tokens, vit
from torch import Tensor, nn

from sparseinfer.export.compile import compile
from sparseinfer.export.errors import UnsupportedOperators


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def convnext(kind: str = "ConvNext") -> Made:
    """Layer norms over channels; in the second version a norm over pixels, of which a mean."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        num_labels=5, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]
    )
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    return pruned(model), {"pixel_values": torch.randn(1, 3, 64, 64)}


def convnext_v2() -> Made:
    model, inputs = convnext("ConvNextV2")
    for name, parameter in model.named_parameters():
        if "grn" in name:
            nn.init.uniform_(parameter)
    return model, inputs


def swin() -> Made:
    """Attention in windows, which are rolled; masks of windows, and biases by distance."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        num_labels=5, image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4],
        window_size=4,
    )  # fmt: skip
    model = transformers.SwinForImageClassification(config)
    for name, parameter in model.named_parameters():
        if "relative_position" in name:
            nn.init.normal_(parameter)
    return pruned(model), {"pixel_values": torch.randn(2, 3, 32, 32)}


def llama() -> Made:
    """Root mean square norms, rotated queries and keys, two heads of queries for one of keys."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    return pruned(transformers.LlamaForCausalLM(config)), tokens()


def whisper() -> Made:
    """Convolutions of lines, then a transformer."""
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
        num_mel_bins=16, max_source_positions=20,
    )  # fmt: skip
    model = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
    return pruned(model), {"input_features": torch.randn(2, 16, 40)}


MODELS = [convnext, convnext_v2, swin, llama, whisper]


@pytest.mark.parametrize("make", some_slow(MODELS, "whisper"))
def test_models_of_transformers(make: Callable[[], Made], tmp_path: Path) -> None:
    model, inputs = make()
    engine = compile(model, inputs, baselines=(), golden=True)
    found = Counter(ops(engine))
    expected = {
        "convnext": {"layer_norm": 10, "depthwise_conv": 5},
        "convnext_v2": {"layer_norm": 10, "depthwise_conv": 5},
        "swin": {"attention": 4, "layer_norm": 11},
        "llama": {"attention": 2, "layer_norm": 5, "linear": 15},
        "whisper": {"attention": 2, "layer_norm": 5, "permute": 1},
    }[make.__name__]
    assert {op: found[op] for op in expected} == expected
    other = {name: x.flip(-1) for name, x in inputs.items()}
    assert close(engine, model, other)
    compared = engine.compare(model, inputs)
    assert compared.first is None, str(compared)
    check_elsewhere(engine, inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [vit, convnext, swin, llama, whisper])
def test_any_batch(make: Callable[[], Made]) -> None:
    model, inputs = make()
    engine = compile(model, inputs, baselines=(), dynamic="batch")
    for batch in (1, 2, 5):
        assert close(engine, model, {key: torch.cat([x.flip(0)] * 5)[:batch]
                                     for key, x in inputs.items()})  # fmt: skip


class Attends(nn.Module):
    """Attention as models without a fused operator write it."""

    def __init__(self, scale: float, masked: bool) -> None:
        super().__init__()
        self.projection, self.scale, self.masked = nn.Linear(8, 24), scale, masked

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).chunk(3, -1)
        scores = (q * self.scale) @ k.transpose(-1, -2) / 2
        if self.masked:
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
        return scores.softmax(-1) @ v


@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_is_written_out(masked: bool) -> None:
    model, x = Attends(0.7, masked).eval(), torch.randn(2, 5, 8)
    engine = compile(model, x, baselines=())
    assert ops(engine) == ["linear", "attention"]
    assert close(engine, model, {"x": torch.randn(2, 5, 8)})


def test_transposed_convolutions_and_norms_of_groups() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(6, 8, 3, 2, 1, 1), nn.GroupNorm(4, 8), nn.SiLU(),
        nn.ConvTranspose2d(8, 4, 2, 2, groups=2), nn.InstanceNorm2d(4, affine=True),
        nn.LayerNorm((4, 20, 28)),
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 5, 7)
    engine = compile(model, x, baselines=(), dynamic="batch")
    assert ops(engine).count("layer_norm") == 3
    for batch in (1, 3):
        assert close(engine, model, {"input": torch.randn(batch, 6, 5, 7)})
    lines = nn.Sequential(nn.ConvTranspose1d(3, 4, 4, 2, 1), nn.AdaptiveAvgPool1d(3))
    x = torch.randn(2, 3, 9)
    assert close(compile(lines.eval(), x, baselines=()), lines, {"input": x})


def test_queries_that_are_turned_before_the_batch() -> None:
    model = Arithmetic(-10000.0).eval()
    inputs = {"x": torch.randn(2, 5, 8), "mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5])}
    engine = compile(model, inputs, baselines=(), dynamic="batch")
    assert ops(engine).count("attention") == 1
    assert close(engine, model, {key: torch.cat([x, x, x]) for key, x in inputs.items()})


class Multiplies(nn.Module):
    """What looks like attention, and is none."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.projection, self.kind = nn.Linear(8, 24), kind

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2)
        if self.kind == "over queries":
            return scores.softmax(-2) @ v
        if self.kind == "no softmax":
            return scores @ v
        return (scores * scores).softmax(-1) @ v


@pytest.mark.parametrize("kind", ["over queries", "no softmax", "squares"])
def test_other_products_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedOperators, match="matmul in '': it multiplies two computed"):
        compile(Multiplies(kind).eval(), torch.randn(2, 5, 8), baselines=())


class Pads(nn.Module):
    def __init__(self, ends: tuple[int, ...], fill: float) -> None:
        super().__init__()
        self.ends, self.fill = ends, fill

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, self.ends, value=self.fill)


@pytest.mark.parametrize("ends", [(1, 2, 3, 4), (-1, 2, 0, -2), (9, 9, 1, 0)])
def test_paddings_that_no_convolution_reads(ends: tuple[int, ...]) -> None:
    model = Pads(ends, -1.5)
    engine = compile(model.eval(), torch.randn(2, 3, 5, 4), baselines=())
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(engine(x), model(x))


class Pools(nn.Module):
    """The mean of the tokens that a mask shows, as sentence embeddings are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        shown = attention_mask.unsqueeze(-1).expand(*attention_mask.shape, 8).float()
        sums = (self.table(input_ids) * shown).sum(1)
        return nn.functional.normalize(sums / shown.sum(1).clamp(min=1e-9), dim=1)


def test_masks_are_numbers_where_a_model_reads_them_so() -> None:
    model, inputs = Pools().eval(), tokens()
    engine = compile(model, inputs, baselines=())
    assert close(engine, model, inputs)
    with pytest.raises(ValueError, match="expected 0 or 1"):
        engine(inputs["input_ids"], 2 * inputs["attention_mask"])
