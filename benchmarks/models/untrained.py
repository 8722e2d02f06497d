"""Networks in their true shapes with random weights, built from transformers' configurations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.models.packages import require
from benchmarks.models.pruning import settle_batch_norms
from benchmarks.models.workload import Workload

TOKENS = 128


def _make(model: str, config: str, **settings: Any) -> nn.Module:
    require("transformers", pip="pip install transformers")
    import transformers

    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return made.eval()


def _text(vocabulary: int, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))


def _image(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def gpt2() -> Workload:
    """GPT-2, 12 layers of 768, whose layers are transformers' Conv1D."""
    model = _make("GPT2LMHeadModel", "GPT2Config")
    return Workload(model, {"input_ids": _text(50257)}, f"{TOKENS} tokens read", trained=False)


def _llama(tokens: int) -> Workload:
    model = _make(
        "LlamaForCausalLM", "LlamaConfig", hidden_size=2048, intermediate_size=5632,
        num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=4, vocab_size=32000,
    )  # fmt: skip
    does = f"{tokens} token{'s' if tokens > 1 else ''} read"
    return Workload(
        model, {"input_ids": _text(32000, tokens)}, does, trained=False, kept=("lm_head",)
    )


def llama() -> Workload:
    """TinyLlama-1.1B's shapes, 4 of its 22 layers: a prompt."""
    return _llama(TOKENS)


def llama_token() -> Workload:
    """TinyLlama-1.1B's shapes, 4 of its 22 layers: one token."""
    return _llama(1)


def vit() -> Workload:
    """ViT-B/16."""
    model = _make("ViTForImageClassification", "ViTConfig", num_labels=1000)
    kept = ("vit.embeddings.patch_embeddings.projection", "classifier")
    return Workload(model, {"pixel_values": _image()}, "1 image", trained=False, kept=kept)


def _convolutional(model: nn.Module, kept: tuple[str, ...], images: int) -> Workload:
    settle_batch_norms(model, _image(2))
    inputs = {"pixel_values": _image(images)}
    does = f"{images} image{'s' if images > 1 else ''}"
    return Workload(model, inputs, does, trained=False, kept=kept, images=True)


def resnet50(images: int = 1) -> Workload:
    """ResNet-50."""
    model = _make("ResNetForImageClassification", "ResNetConfig", num_labels=1000)
    return _convolutional(model, ("resnet.embedder.embedder.convolution", "classifier.1"), images)


def mobilenetv2() -> Workload:
    """MobileNetV2."""
    model = _make("MobileNetV2ForImageClassification", "MobileNetV2Config", num_labels=1000)
    return _convolutional(model, ("mobilenet_v2.conv_stem.first_conv.convolution", "classifier"), 1)
