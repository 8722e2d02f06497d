"""Prune a saved checkpoint: by threshold, by magnitude globally and per layer, then make it pay.

A network is trained on Fashion-MNIST (Debian's dataset-fashion-mnist) or scikit-learn's digits and
saved as a .pth, as a training script would. From there on only the file is pruned: no model code.
The table shows what each way of pruning keeps, how accurate the network still is, and how large
the file is, dense and sparse. Zeros in a dense file make it no smaller.

    python examples/001_prune_a_saved_checkpoint.py --out pruned/
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import sparseinfer
from sparseinfer.checkpoints import Recipe, prune_checkpoint
from sparseinfer.demo.data import Dataset, load
from sparseinfer.demo.network import DemoNet
from sparseinfer.demo.training import Curve, accuracy, logits, steps_in, train


@dataclass
class Outcome:
    """What one way of pruning gave: zeros and accuracy as fractions, sizes in bytes."""

    name: str
    zeros: float
    accuracy: float
    dense_bytes: int
    sparse_bytes: int


def trained(data: Dataset, epochs: int, console: Console) -> DemoNet:
    """The network of the demo after so many epochs."""
    model = DemoNet(data.image_size)
    steps = iter(track(range(steps_in(data, epochs)), "training", console=console, transient=True))
    train(model, data, epochs, 0, Curve(), lambda _: next(steps, None))
    return model.eval()


def tested(path: Path, data: Dataset) -> float:
    """The accuracy on the test images of a fresh network with this checkpoint."""
    model = sparseinfer.load_sparse_into(DemoNet(data.image_size), path).eval()
    return accuracy(logits(model, data.test_images), data.test_labels)


def run(arguments: Sequence[str] | None = None) -> list[Outcome]:
    """Run the example and print its tables; returns what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("pruned-checkpoints"), help="folder")
    parser.add_argument("--amount", type=float, default=0.7, help="fraction to prune")
    parser.add_argument("--threshold", type=float, default=0.02, help="prune |w| up to this")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of training")
    parser.add_argument("--train-images", type=int, default=20000, help="at most so many")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    torch.manual_seed(0)

    # 1. Train, and save as most training scripts do: the state_dict among other things.
    data = load(None, seed=0, train_images=options.train_images)
    source = options.out / "trained.pth"
    model = trained(data, options.epochs, console)
    torch.save({"epoch": options.epochs, "state_dict": model.state_dict()}, source)
    console.print(f"{data.name}: {len(data.train_labels)} images, saved {source}\n")

    # 2. Prune the file. The first convolution and the classifier hold few weights, and the others
    #    depend on them, so they stay dense. Of the article's ways, the threshold says how small a
    #    weight must be, an amount says how many go: over all layers, or in each.
    dense_layers = ("stem.0", "classifier")
    recipes = {
        f"|w| <= {options.threshold}": Recipe("threshold", options.threshold, exclude=dense_layers),
        f"{options.amount:.0%} of all weights": Recipe(
            "magnitude", options.amount, "global", exclude=dense_layers
        ),
        f"{options.amount:.0%} of each layer": Recipe(
            "magnitude", options.amount, "layer", exclude=dense_layers
        ),
    }
    before = sparseinfer.save_sparse(model, options.out / "trained.safetensors")
    outcomes = [
        Outcome("as trained", 0.0, tested(source, data), source.stat().st_size, _size(before.path))
    ]
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        dense, sparse = (options.out / f"pruned{number}{end}" for end in (".pth", ".safetensors"))
        with warnings.catch_warnings(record=True) as told:
            result = prune_checkpoint(source, recipe, dense)
        for warning in told:
            console.print(f"warning: {warning.message}", style="yellow")
        # 3. The same zeros, left out of the file; it loads like any other.
        prune_checkpoint(source, recipe, sparse, format="sparse")
        score = tested(dense, data)
        assert score == tested(sparse, data)
        outcomes.append(Outcome(name, result.sparsity, score, _size(dense), _size(sparse)))
    _show(outcomes, console)

    # 4. Make it fast: the layers that gain run sparse, the report says why the others do not.
    restored = sparseinfer.load_sparse_into(DemoNet(data.image_size), sparse).eval()
    converted = sparseinfer.convert_to_sparse(restored, example_inputs=data.test_images[:32])
    same = accuracy(logits(converted, data.test_images), data.test_labels)
    console.print(f"\nconverted ({outcomes[-1].name}), accuracy {same:.1%}:")
    print(sparseinfer.report(converted))
    console.print(
        "\nThis pruned without training again. Fine-tuning with the masks held wins accuracy back "
        "at far higher sparsity: sparseinfer demo, sparseinfer.prune.Pruner."
    )
    return outcomes


def _show(outcomes: list[Outcome], console: Console) -> None:
    table = Table("pruned", title="the checkpoint, pruned", title_justify="left")
    for heading in ("zeros", "accuracy", "dense file", "sparse file"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            f"{outcome.zeros:.1%}",
            f"{outcome.accuracy:.1%}",
            f"{outcome.dense_bytes / 1000:,.0f} kB",
            f"{outcome.sparse_bytes / 1000:,.0f} kB",
        )
    console.print(table)


def _size(path: Path) -> int:
    return path.stat().st_size


if __name__ == "__main__":
    run()
