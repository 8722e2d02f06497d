"""The network that the pruning suite trains: a small ResNet."""

from __future__ import annotations

from torch import Tensor, nn

STEM, CLASSIFIER = "stem.0", "classifier"
"""Layers that stay dense in every method: few weights, on which all others depend."""


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs, height, width] to [batch, outputs, height', width']."""
        return self.act(self.body(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A stem and four residual blocks, 0.6 million parameters; images [batch, 1, height, width].

    Sides above 8 pixels are halved by the stem.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        stride = 2 if min(image_size) > 8 else 1
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(
            Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2), Block(128, 128, 1)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [batch, 10]."""
        return self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
