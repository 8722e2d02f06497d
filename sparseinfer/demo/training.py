"""Training and gradual pruning of the demo's network, with the curve that the plot shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparseinfer.demo.data import Dataset
from sparseinfer.demo.network import DENSE_LAYERS
from sparseinfer.prune import PolynomialDecay, Pruner

BATCH = 128
EVALUATION_BATCH = 256
DENSE_LEARNING_RATE = 4e-3
# Fine-tuning takes a smaller rate, so that what survives keeps what it learnt.
PRUNE_LEARNING_RATE = 2e-3
# The masks grow over the first part of fine-tuning; the rest recovers at the final sparsity.
GROWTH = 0.6
UPDATES = 20
CURVE_POINTS = 10

Advance = Callable[[str], None]


@dataclass
class Curve:
    """Validation accuracy and sparsity, both fractions, after so many training steps."""

    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)

    def add(self, step: int, accuracy: float, sparsity: float) -> None:
        """Add a point."""
        self.steps.append(step)
        self.accuracy.append(accuracy)
        self.sparsity.append(sparsity)


def steps_in(dataset: Dataset, epochs: int) -> int:
    """Return the training steps of so many epochs; the incomplete last batch is left out."""
    images = len(dataset.train_labels)
    return epochs * (images // _batch_size(images))


def _batch_size(images: int) -> int:
    # Few images still make enough steps for a schedule.
    return min(BATCH, max(8, images // 8))


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [count, 10] of images [count, 1, height, width], batch by batch."""
    return torch.cat([model(batch) for batch in images.split(EVALUATION_BATCH)])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows of `outputs` whose largest entry is at the label."""
    return int((outputs.argmax(1) == labels).sum()) / len(labels)


def train(
    model: nn.Module, dataset: Dataset, epochs: int, seed: int, curve: Curve, advance: Advance
) -> None:
    """Train the dense network in place; `advance` is called after every step with a status."""
    steps = steps_in(dataset, epochs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=DENSE_LEARNING_RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, DENSE_LEARNING_RATE, total_steps=steps)
    _fit(model, dataset, steps, seed, optimizer, rate, None, curve, advance)


def prune(
    model: nn.Module,
    dataset: Dataset,
    epochs: int,
    sparsity: float,
    seed: int,
    curve: Curve,
    advance: Advance,
) -> Pruner:
    """Prune the network in place by gradual global magnitude while fine-tuning it.

    The first convolution and the classifier stay dense. Returns the pruner, whose masks were held
    to the last step; the model is plain.
    """
    steps = steps_in(dataset, epochs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRUNE_LEARNING_RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    frequency = max(1, round(GROWTH * steps / UPDATES))
    # The last update is the end only where the frequency divides the whole.
    end = max(1, round(GROWTH * steps / frequency)) * frequency
    schedule = PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end, frequency=frequency)
    pruner = Pruner(model, optimizer, schedule, ignore=DENSE_LAYERS)
    _fit(model, dataset, steps, seed, optimizer, rate, pruner, curve, advance)
    pruner.finalize()
    return pruner


def _fit(
    model: nn.Module,
    dataset: Dataset,
    steps: int,
    seed: int,
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    pruner: Pruner | None,
    curve: Curve,
    advance: Advance,
) -> None:
    images, labels = dataset.train_images, dataset.train_labels
    size = _batch_size(len(labels))
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    # Training is up to four times faster in this layout; the finished model goes back to torch's
    # usual one.
    nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
    started_at = curve.steps[-1] if curve.steps else 0
    model.train()
    for step in range(steps):
        if len(order) < size:
            order = torch.randperm(len(labels), generator=generator)
        batch, order = order[:size], order[size:]
        optimizer.zero_grad(set_to_none=True)
        inputs = images[batch].contiguous(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(model(inputs), labels[batch])
        loss.backward()
        optimizer.step()
        rate.step()
        if pruner is not None:
            pruner.step()
        if (step + 1) % math.ceil(steps / CURVE_POINTS) == 0 or step + 1 == steps:
            sparsity = 0.0 if pruner is None else pruner.sparsity
            curve.add(started_at + step + 1, _validate(model, dataset), sparsity)
        advance(_status(loss, curve, pruner))
    # Fixed statistics from here on: what a served model has.
    model.eval()
    nn.utils.convert_conv2d_weight_memory_format(model, torch.contiguous_format)


def _validate(model: nn.Module, dataset: Dataset) -> float:
    model.eval()
    images = dataset.validation_images.contiguous(memory_format=torch.channels_last)
    outputs = logits(model, images)
    model.train()
    return accuracy(outputs, dataset.validation_labels)


def _status(loss: Tensor, curve: Curve, pruner: Pruner | None) -> str:
    words = [f"loss {loss.item():.2f}"]
    if curve.accuracy:
        words.append(f"accuracy {curve.accuracy[-1]:.1%}")
    if pruner is not None:
        words.append(f"sparsity {pruner.sparsity:.1%}")
    return ", ".join(words)
