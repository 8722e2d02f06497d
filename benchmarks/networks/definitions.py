"""The networks that are measured, in the shapes of their papers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.models.pruning import prune, settle_batch_norms

SEED = 0


@dataclass(frozen=True)
class Network:
    """How to make a network, the shape of one input, and the layers that stay dense.

    An input is of normal numbers, or of `tokens` ids below that.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kept: tuple[str, ...]
    tokens: int = 0


def mlp() -> nn.Module:
    """784 inputs, three hidden layers of 1024, 10 outputs."""
    sizes = [784, 1024, 1024, 1024]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, act: type[nn.Module]
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


def _classifier(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)


def resnet50() -> nn.Module:
    """ResNet-50 as torchvision has it: strides in the 3 x 3 convolutions."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2, 1, nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner, outputs = 64 * 2**stage, 256 * 2**stage
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            body = nn.Sequential(
                _conv(channels, inner, 1, 1, 1, nn.ReLU),
                _conv(inner, inner, 3, stride, 1, nn.ReLU),
                _conv(inner, outputs, 1, 1, 1, nn.Identity),
            )
            shortcut: nn.Module = nn.Identity()
            if stride != 1 or channels != outputs:
                shortcut = _conv(channels, outputs, 1, stride, 1, nn.Identity)
            layers.append(_Residual(body, shortcut, nn.ReLU()))
            channels = outputs
    return nn.Sequential(*layers, *_classifier(channels))


def mobilenet_v1() -> nn.Module:
    """MobileNetV1 1.0: thirteen depthwise and pointwise convolutions in turn."""
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, 1, nn.ReLU)]
    channels = 32
    for outputs, stride in [*plan, (1024, 2), (1024, 1)]:
        layers.append(_conv(channels, channels, 3, stride, channels, nn.ReLU))
        layers.append(_conv(channels, outputs, 1, 1, 1, nn.ReLU))
        channels = outputs
    return nn.Sequential(*layers, *_classifier(channels))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 1.0: inverted residuals."""
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, 1, nn.ReLU6)]
    channels = 32
    for expansion, outputs, count, first in plan:
        for index in range(count):
            stride, inner = first if index == 0 else 1, channels * expansion
            body = [_conv(inner, inner, 3, stride, inner, nn.ReLU6)]
            if expansion > 1:
                body.insert(0, _conv(channels, inner, 1, 1, 1, nn.ReLU6))
            block: nn.Module = nn.Sequential(*body, _conv(inner, outputs, 1, 1, 1, nn.Identity))
            if stride == 1 and channels == outputs:
                block = _Residual(block, nn.Identity(), nn.Identity())
            layers.append(block)
            channels = outputs
    layers.append(_conv(channels, 1280, 1, 1, 1, nn.ReLU6))
    return nn.Sequential(*layers, *_classifier(1280))


class _Hidden(nn.Module):
    """The hidden states of an encoder, for tokens that are all there."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(ids).last_hidden_state
        return hidden


def bert_base() -> nn.Module:
    """BERT-base's twelve blocks on its embeddings; the pooler, which nothing reads, is left out."""
    from transformers import BertConfig, BertModel

    return _Hidden(BertModel(BertConfig(), add_pooling_layer=False))


IMAGE = (3, 224, 224)
VOCABULARY = 30522

NETWORKS = {
    network.name: network
    for network in (
        Network("mlp", mlp, (784,), ("3",)),
        Network("mobilenet-v1", mobilenet_v1, IMAGE, ("0.0", "29")),
        Network("mobilenet-v2", mobilenet_v2, IMAGE, ("0.0", "21")),
        Network("resnet50", resnet50, IMAGE, ("0.0", "20")),
        Network("bert-base", bert_base, (128,), (), VOCABULARY),
    )
}


def depthwise(model: nn.Module) -> tuple[str, ...]:
    """The names of depthwise convolutions, which stay dense: each weight is a channel's own."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] == 1
    )


def build(network: Network, sparsity: float) -> nn.Module:
    """The network with this share of its weights zero, the same at every call.

    Batch norms have the statistics of random images, so that signals stay of one size.
    """
    torch.manual_seed(SEED)
    model = network.make().eval()
    settle_batch_norms(model, inputs_of(network, 4 if len(network.shape) == 3 else 64, SEED + 1))
    if sparsity:
        prune(model, sparsity, (*network.kept, *depthwise(model)))
        settle_batch_norms(
            model, inputs_of(network, 4 if len(network.shape) == 3 else 64, SEED + 1)
        )
    return model


def inputs_of(network: Network, batch: int, seed: int = SEED) -> Tensor:
    """Random inputs of a network."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *network.shape)
    if network.tokens:
        return torch.randint(network.tokens, shape, generator=generator)
    return torch.randn(shape, generator=generator)
