"""Networks in the shapes of the papers, with random weights, for tests of whole graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

__all__ = [
    "SMALL", "Made", "efficientnet_lite", "mlp", "mobilenet_v1", "mobilenet_v2", "prune", "resnet",
    "simple_cnn",
]  # fmt: skip


def prune(model: nn.Module, sparsity: float) -> None:
    """Zero weights at random, but not those of first convolutions and of depthwise ones."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and weight.shape[1] > 3:
            weight.data *= torch.rand(weight.shape) >= sparsity


def mlp() -> nn.Module:
    sizes = [784, 1024, 1024, 1024]
    layers = [layer for a, b in pairwise(sizes) for layer in _dense(a, b)]
    return nn.Sequential(*layers, nn.Linear(1024, 10)).eval()


def _dense(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, outputs), nn.ReLU()


def simple_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 8 * 8, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


class _Convolution(nn.Sequential):
    """Convolution, batch norm with statistics of its own, activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:  # fmt: skip
        norm = nn.BatchNorm2d(outputs)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2.0)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, norm, activation or nn.Identity())


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


def resnet(block: str, width: float, most: int = 6) -> nn.Module:
    """ResNet-18 (`basic`) or ResNet-50 (`bottleneck`), of `most` blocks a stage."""
    depths = [2, 2, 2, 2] if block == "basic" else [3, 4, 6, 3]
    expansion = 1 if block == "basic" else 4
    relu = partial(nn.ReLU, inplace=True)
    channels = int(64 * width)
    layers: list[nn.Module] = [_Convolution(3, channels, 7, 2, activation=relu())]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for stage, depth in enumerate(depths):
        inner = int(64 * 2**stage * width)
        for index in range(min(depth, most)):
            stride = 2 if stage > 0 and index == 0 else 1
            outputs = inner * expansion
            if block == "basic":
                body = [_Convolution(channels, inner, 3, stride, activation=relu())]
                body.append(_Convolution(inner, outputs, 3))
            else:
                body = [_Convolution(channels, inner, 1, activation=relu())]
                body.append(_Convolution(inner, inner, 3, stride, activation=relu()))
                body.append(_Convolution(inner, outputs, 1))
            same = stride == 1 and channels == outputs
            shortcut = nn.Identity() if same else _Convolution(channels, outputs, 1, stride)
            layers.append(_Residual(nn.Sequential(*body), shortcut, relu()))
            channels = outputs
    return nn.Sequential(*layers, *_head(channels)).eval()


def mobilenet_v1(width: float, most: int = 13) -> nn.Module:
    """The first `most` of its 13 blocks."""
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    channels = int(32 * width)
    layers: list[nn.Module] = [_Convolution(3, channels, 3, 2, activation=nn.ReLU())]
    for full, stride in [*plan, (1024, 2), (1024, 1)][:most]:
        outputs = int(full * width)
        layers.append(_Convolution(channels, channels, 3, stride, channels, nn.ReLU()))
        layers.append(_Convolution(channels, outputs, 1, activation=nn.ReLU()))
        channels = outputs
    return nn.Sequential(*layers, *_head(channels)).eval()


def mobilenet_v2(width: float, most: int = 7) -> nn.Module:
    """The first `most` of its 7 stages."""
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
    channels = _rounded(32 * width)
    layers: list[nn.Module] = [_Convolution(3, channels, 3, 2, activation=nn.ReLU6())]
    for expansion, full, count, first_stride in plan[:most]:
        for index in range(count):
            stride, outputs = first_stride if index == 0 else 1, _rounded(full * width)
            inner = channels * expansion
            body = [_Convolution(inner, inner, 3, stride, inner, nn.ReLU6())]
            if expansion > 1:
                body.insert(0, _Convolution(channels, inner, 1, activation=nn.ReLU6()))
            body.append(_Convolution(inner, outputs, 1))
            block: nn.Module = nn.Sequential(*body)
            if stride == 1 and channels == outputs:
                block = _Residual(block, nn.Identity(), nn.Identity())
            layers.append(block)
            channels = outputs
    layers.append(_Convolution(channels, 1280, 1, activation=nn.ReLU6()))
    return nn.Sequential(*layers, *_head(1280)).eval()


def efficientnet_lite() -> nn.Module:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model: nn.Module = package.EfficientNet.from_name("efficientnet-lite0").eval()
    # Its random weights make the signal vanish on the way.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def _head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)


def _rounded(channels: float) -> int:
    """To a multiple of 8, as the paper has it."""
    return max(8, int(channels + 4) // 8 * 8)


Made = tuple[nn.Module, Tensor]

SMALL: dict[str, Callable[[], Made]] = {
    "mlp": lambda: (mlp(), torch.randn(3, 784)),
    "simple_cnn": lambda: (simple_cnn(), torch.randn(2, 3, 32, 32)),
    "resnet18": lambda: (resnet("basic", 0.25, 1), torch.randn(2, 3, 64, 64)),
    "resnet50": lambda: (resnet("bottleneck", 0.25, 1), torch.randn(1, 3, 65, 65)),
    "mobilenet_v1": lambda: (mobilenet_v1(0.25, 5), torch.randn(1, 3, 64, 64)),
    "mobilenet_v2": lambda: (mobilenet_v2(0.35, 3), torch.randn(1, 3, 64, 64)),
}
"""Of fewer blocks and channels than the papers have: to export a network takes torch seconds."""
