"""The demo's network: a small convolutional classifier, wide enough that sparsity can pay."""

from __future__ import annotations

from torch import Tensor, nn

# By usual practice the first convolution and the classifier stay dense: they hold few weights, and
# every other layer depends on them.
DENSE_LAYERS = ("stem.0", "classifier")


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class DemoNet(nn.Module):
    """Four 3x3 convolutions with BatchNorm, a hidden linear layer and a classifier.

    Input [batch, 1, height, width] with sides of 8 pixels or more; output [batch, 10] logits.
    Sides above 8 pixels are halved once after each of the first two convolutions.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        self.stem = _block(1, 64)
        self.pool1, height, width = _halve(height, width)
        self.block1 = _block(64, 64)
        self.pool2, height, width = _halve(height, width)
        self.block2 = _block(64, 128)
        self.block3 = _block(128, 128)
        self.pool3 = nn.AdaptiveAvgPool2d(3)
        self.hidden = nn.Linear(128 * 9, 256)
        self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [batch, 10]."""
        features = self.pool1(self.stem(images))
        features = self.pool2(self.block1(features))
        features = self.pool3(self.block3(self.block2(features)))
        return self.classifier(self.act(self.hidden(features.flatten(1))))


def _halve(height: int, width: int) -> tuple[nn.Module, int, int]:
    if min(height, width) > 8:
        return nn.MaxPool2d(2), height // 2, width // 2
    return nn.Identity(), height, width
