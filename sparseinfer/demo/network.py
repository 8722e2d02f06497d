"""The demo's network: a small convolutional classifier, wide enough that sparsity can pay."""

from __future__ import annotations

from torch import Tensor, nn

# By usual practice the first convolution and the classifier stay dense: they hold few weights, and
# every other layer depends on them.
DENSE_LAYERS = ("stem.0", "classifier")


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class DemoNet(nn.Module):
    """Four 3x3 convolutions with BatchNorm, a hidden linear layer and a classifier.

    Input [batch, 1, height, width] with sides of 8 pixels or more; output [batch, 10] logits.
    The first and the third convolution halve sides above 8 pixels by a stride of 2: pooling at the
    full size would take longer than the convolutions, whatever their weights.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        side = min(image_size)
        strides = (2 if side > 8 else 1, 2 if side > 16 else 1)
        self.stem = _block(1, 64, strides[0])
        self.block1 = _block(64, 64)
        self.block2 = _block(64, 128, strides[1])
        self.block3 = _block(128, 128)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.hidden = nn.Linear(128 * 9, 256)
        self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [batch, 10]."""
        features = self.block3(self.block2(self.block1(self.stem(images))))
        return self.classifier(self.act(self.hidden(self.pool(features).flatten(1))))
