"""PyTorch pruning, step by step: what each way prunes, what it costs, and how to make it pay.

A network is trained on Fashion-MNIST (Debian's dataset-fashion-mnist) or scikit-learn's digits,
then pruned under the names that torch.nn.utils.prune made known: random and L1 unstructured, Ln
structured, a custom mask, remove. Then come the steps that decide whether pruning is worth it:
fine-tuning with the masks held, evaluation, a sensitivity scan that says which layers bear it, a
second try where accuracy fell too far, and sparse kernels.

    python examples/000_pytorch_pruning.py --out pruning/
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sparseinfer
from sparseinfer import prune
from sparseinfer.demo import training
from sparseinfer.demo.data import Dataset, load
from sparseinfer.demo.network import DENSE_LAYERS, DemoNet
from sparseinfer.prune.recover import fine_tune, prune_to_floor, reestimate_batchnorm
from sparseinfer.prune.sensitivity import scan_sensitivity

BATCH = 64


@dataclass
class Step:
    """A step under its known name: zeros as a fraction of what it pruned, accuracy, mean loss."""

    name: str
    zeros: float
    accuracy: float
    loss: float


class Walk:
    """The data, the trained network, and the steps so far."""

    def __init__(self, data: Dataset, model: nn.Module) -> None:
        self.data = data
        self.model = model
        self.steps: list[Step] = []

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled training batches."""
        order = torch.randperm(len(self.data.train_labels))
        for part in order.split(BATCH):
            if len(part) > 1:  # BatchNorm cannot train on one image
                yield self.data.train_images[part], self.data.train_labels[part]

    def accuracy(self, model: nn.Module) -> float:
        """Validation accuracy: what choices are made by. The test images are for the table."""
        outputs = training.logits(model, self.data.validation_images)
        return training.accuracy(outputs, self.data.validation_labels)

    def note(self, name: str, model: nn.Module, layers: Sequence[str]) -> Step:
        """Evaluate a model on the test images, and add the step."""
        model.eval()
        outputs = training.logits(model, self.data.test_images)
        weights = [model.get_submodule(layer).weight for layer in layers]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        self.steps.append(
            Step(
                name,
                zeros / sum(weight.numel() for weight in weights),
                training.accuracy(outputs, self.data.test_labels),
                float(nn.functional.cross_entropy(outputs, self.data.test_labels)),
            )
        )
        return self.steps[-1]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def one_layer(walk: Walk) -> None:
    """Steps 1 to 5: the functions of torch.nn.utils.prune, each on one layer of a fresh copy."""
    name = "block3.0"

    # 1. Random unstructured: any weights. A float is a fraction, an int a count: 1 and 1.0 differ.
    model = copy.deepcopy(walk.model)
    prune.random_unstructured(model.get_submodule(name), "weight", amount=0.7)
    walk.note("random unstructured, one layer", model, [name])

    # 2. L1 unstructured: the smallest |w|. A fraction given again is one of the survivors.
    model = copy.deepcopy(walk.model)
    layer = model.get_submodule(name)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    prune.l1_unstructured(layer, "weight", amount=0.4)
    walk.note("L1 unstructured, 50% then 40% of the rest", model, [name])

    # 3. Ln structured: whole slices. dim=0 is output filters, dim=1 input channels.
    model = copy.deepcopy(walk.model)
    prune.ln_structured(model.get_submodule(name), "weight", amount=0.3, n=2, dim=0)
    walk.note("Ln structured, 30% of the filters", model, [name])

    # 4. A custom mask: here, the centre of each 3x3 kernel is all that is kept.
    model = copy.deepcopy(walk.model)
    layer = model.get_submodule(name)
    mask = torch.zeros_like(layer.weight)
    mask[:, :, 1, 1] = 1
    prune.custom_from_mask(layer, "weight", mask)
    walk.note("custom mask, kernel centres only", model, [name])

    # 5. While a mask is attached, the checkpoint holds the original weight and the mask. `remove`
    #    makes it permanent; it does not bring the weight back, and zeros alone save no byte.
    assert {f"{name}.weight_orig", f"{name}.weight_mask"} <= set(model.state_dict())
    prune.remove(layer, "weight")
    assert f"{name}.weight" in model.state_dict() and not prune.is_pruned(model)
    walk.note("remove: the same zeros, made permanent", model, [name])


def run(arguments: Sequence[str] | None = None) -> list[Step]:
    """Run the example and print its tables; returns the steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("pruning"), help="folder")
    parser.add_argument("--sparsity", type=float, default=0.9, help="fraction to prune in the end")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=2, help="epochs after each pruning")
    parser.add_argument("--train-images", type=int, default=20000, help="at most so many")
    parser.add_argument("--floor", type=float, default=0.02, help="accuracy that may be lost")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    torch.manual_seed(0)

    data = load(None, seed=0, train_images=options.train_images)
    model = DemoNet(data.image_size)
    console.print(f"{data.name}: {len(data.train_labels)} training images")
    training.train(model, data, options.epochs, 0, training.Curve(), lambda status: None)
    walk = Walk(data, model)
    layers = [target.name.removesuffix(".weight") for target in
              prune.Pruner(copy.deepcopy(model), ignore=DENSE_LAYERS).targets]  # fmt: skip
    walk.note("dense, as trained", model, layers)
    one_layer(walk)

    def recover(pruned: nn.Module, pruner: prune.Pruner) -> None:
        # A smaller learning rate than the dense training's; the optimiser keeps no masked weight.
        pruner.step()
        optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-3, weight_decay=1e-2)
        fine_tune(pruned, walk.batches, loss, optimizer,
                  epochs=options.fine_tune_epochs, pruner=pruner)  # fmt: skip
        reestimate_batchnorm(pruned, walk.batches(), lambda net, batch: net(batch[0]))

    # 6. The whole network at once, by global magnitude: without training, then with the masks held.
    #    The first convolution and the classifier hold few weights, and the others depend on them.
    pruned = copy.deepcopy(model)
    pruner = prune.Pruner(pruned, schedule=options.sparsity, ignore=DENSE_LAYERS)
    pruner.step()
    walk.note(f"global magnitude, {options.sparsity:.0%}, one shot", pruned, layers)
    recover(pruned, pruner)
    walk.note("... after fine-tuning with the masks held", pruner.finalize(), layers)

    # 7. Which layers bear it: accuracy with one layer pruned at a time, and ratios from that.
    found = scan_sensitivity(model, walk.accuracy, sparsities=(0.5, 0.7, 0.9, 0.95),
                             ignore=DENSE_LAYERS)  # fmt: skip
    found.plot(options.out / "sensitivity.png")
    _show_sensitivity(found.sparsities, found.accuracy, console)
    ratios = found.ratios(1.0 - min(options.sparsity, 0.94), of="size")

    # 8. Where accuracy falls below a floor, another ratio or method is tried.
    attempts = [
        {"schedule": options.sparsity, "ratios": ratios, "ignore": DENSE_LAYERS},
        {"schedule": options.sparsity, "ignore": DENSE_LAYERS},
        {"schedule": 0.7 * options.sparsity, "ignore": DENSE_LAYERS},
        {"schedule": 0.3 * options.sparsity, "ignore": DENSE_LAYERS},
    ]
    floor = walk.accuracy(model) - options.floor
    best, tried = prune_to_floor(model, attempts, walk.accuracy, floor, recover=recover)
    for attempt in tried:
        way = "ratios of the scan" if "ratios" in attempt.options else "one sparsity for all"
        verdict = "kept" if attempt.accepted else "too low, trying another"
        console.print(f"{way}, {attempt.options['schedule']:.0%}: validation accuracy "
                      f"{attempt.accuracy:.1%}, {verdict} (floor {floor:.1%})")  # fmt: skip
    walk.note("the attempt that stayed above the floor", best, layers)

    # 9. Zeros in a dense tensor are no faster. Sparse kernels are, where the report says so.
    converted = sparseinfer.convert_to_sparse(best, example_inputs=data.test_images[:32])
    print(sparseinfer.report(converted))
    torch.save(converted.state_dict(), options.out / "sparse.pt")
    _show_steps(walk.steps, console)
    return walk.steps


def _show_sensitivity(
    sparsities: Sequence[float], accuracy: dict[str, list[float]], console: Console
) -> None:
    table = Table("layer", title="accuracy with this one layer pruned", title_justify="left")
    for sparsity in sparsities:
        table.add_column(f"{sparsity:.0%}", justify="right")
    for name, values in accuracy.items():
        table.add_row(name, *(f"{value:.1%}" for value in values))
    console.print(table)


def _show_steps(steps: Sequence[Step], console: Console) -> None:
    table = Table("step", title="step by step, on the test images", title_justify="left")
    for heading in ("zeros", "accuracy", "loss"):
        table.add_column(heading, justify="right")
    for step in steps:
        table.add_row(step.name, f"{step.zeros:.1%}", f"{step.accuracy:.1%}", f"{step.loss:.3f}")
    console.print(table)


if __name__ == "__main__":
    run()
