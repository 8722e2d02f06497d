"""How much accuracy each way of pruning keeps: `python -m benchmarks.pruning --out FILE`.

With `--structures` it is the study of `benchmarks.pruning_structures` that runs.

A small ResNet is trained on Fashion-MNIST (Debian's dataset-fashion-mnist) or scikit-learn's
digits, once for each seed. Every method but the lottery ticket starts from that network, prunes all
layers but the stem and the classifier, and trains as many epochs more as every other, the dense
network too. Accuracies are on test images that no choice looked at.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import pruning_structures
from benchmarks.pruning_network import CLASSIFIER, STEM, SmallResNet
from benchmarks.record import Record, shown
from sparseinfer.demo.data import Dataset, load
from sparseinfer.demo.training import accuracy, logits
from sparseinfer.prune import PolynomialDecay, Pruner, Random, taylor
from sparseinfer.prune.lottery import Training, lottery_ticket
from sparseinfer.prune.recover import fine_tune, reestimate_batchnorm

BATCH = 128
DENSE_RATE, FINE_TUNE_RATE = 3e-3, 1e-3
SPARSITY = 0.9
FILTERS = 0.5
"""Structured pruning removes what kernels of any kind can skip, and costs more accuracy: less of
it."""

ROUNDS = 3
UPDATES = 20
GROWTH = 0.6
"""Share of its steps over which gradual pruning grows."""

TOLERANCE = 0.01
"""Accuracy that gradual magnitude pruning at 90% may lose, to a dense network trained as long."""


@dataclass(frozen=True)
class TrainingPlan:
    """Training images, seeds, and epochs of dense training, of a method, of a lottery round."""

    images: int
    seeds: int
    dense: int
    tune: int
    lottery: int


FULL = TrainingPlan(images=10_000, seeds=3, dense=5, tune=3, lottery=3)
QUICK = TrainingPlan(images=500, seeds=1, dense=2, tune=1, lottery=1)


@dataclass
class MethodRow:
    """One method with one seed: zeros of the layers it pruned and accuracy as fractions."""

    method: str
    seed: int
    sparsity: float
    accuracy: float
    steps: int
    seconds: float


@dataclass
class Statement:
    """A statement about the means over seeds, its two sides, and whether it holds."""

    name: str
    left: float
    right: float
    holds: bool


@dataclass(kw_only=True)
class PruningResults(Record):
    """Everything one run writes."""

    PROGRAM = "benchmarks.pruning"

    rows: list[MethodRow] = field(default_factory=list)
    summary: dict[str, dict[str, float]] = field(default_factory=dict)
    checks: list[Statement] = field(default_factory=list)


class Bench:
    """The methods on one seed's data and dense network."""

    def __init__(self, data: Dataset, plan: TrainingPlan, seed: int) -> None:
        self.data, self.plan, self.seed = data, plan, seed
        torch.manual_seed(seed)
        self.dense: nn.Module = SmallResNet(data.image_size)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """One epoch of shuffled whole batches."""
        labels = self.data.train_labels
        order = torch.randperm(len(labels), generator=self.generator)
        size = min(BATCH, max(8, len(labels) // 8))
        # Training is several times faster in this layout.
        return [
            (self.data.train_images[part].contiguous(memory_format=torch.channels_last),
             labels[part])
            for part in order.split(size) if len(part) == size
        ]  # fmt: skip

    def methods(self) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
        """Names of the methods with what runs them; the dense training comes first."""
        yield "dense", self.train_dense
        # What pruning adds is not to be confused with what more training adds.
        yield "dense, trained on", lambda: self.tuned(copy.deepcopy(self.dense), None)
        yield "gradual magnitude", self.gradual
        yield "one-shot magnitude", lambda: self.one_shot()
        yield "one-shot magnitude by layer", lambda: self.one_shot(scope="layer")
        yield "one-shot Taylor", lambda: self.one_shot(criterion=self.importance())
        yield "one-shot random", lambda: self.one_shot(criterion=Random(self.seed))
        yield "one-shot 2:4", lambda: self.one_shot(structure="2:4")
        yield "one-shot blocks 4x1", lambda: self.one_shot(structure="4x1")
        yield "one-shot filters", lambda: self.one_shot(FILTERS, structure="filters", scope="layer")
        yield "lottery ticket", self.lottery

    def train_dense(self) -> nn.Module:
        """Train the network that all methods start from."""
        optimizer = torch.optim.AdamW(self.dense.parameters(), DENSE_RATE)
        self.fit(self.dense, optimizer, self.plan.dense)
        return self.dense

    def fit(self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int,
            pruner: Pruner | None = None) -> None:  # fmt: skip
        """Train in place with a cosine learning rate."""
        nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
        done = fine_tune(model, self.batches, _loss, optimizer, epochs=epochs, pruner=pruner)
        self.steps += done.steps

    def tuned(self, model: nn.Module, pruner: Pruner | None) -> nn.Module:
        """Fine-tune, masks held, and measure the BatchNorms anew."""
        optimizer = torch.optim.AdamW(model.parameters(), FINE_TUNE_RATE)
        self.fit(model, optimizer, self.plan.tune, pruner)
        reestimate_batchnorm(model, self.batches(), lambda net, batch: net(batch[0]))
        return model

    def one_shot(self, sparsity: float = SPARSITY, **options: Any) -> nn.Module:
        """Prune at once, then fine-tune."""
        model = copy.deepcopy(self.dense)
        pruner = Pruner(model, schedule=sparsity, ignore=[STEM, CLASSIFIER], **options)
        pruner.step()
        self.tuned(model, pruner)
        return pruner.finalize()

    def gradual(self) -> nn.Module:
        """Prune by global magnitude while fine-tuning."""
        model = copy.deepcopy(self.dense)
        steps = self.plan.tune * len(self.batches())
        frequency = max(1, round(GROWTH * steps / UPDATES))
        end = max(1, round(GROWTH * steps / frequency)) * frequency
        schedule = PolynomialDecay(0.0, SPARSITY, 0, end, frequency=frequency)
        pruner = Pruner(model, None, schedule, ignore=[STEM, CLASSIFIER])
        self.tuned(model, pruner)
        return pruner.finalize()

    def importance(self) -> Any:
        """The Taylor criterion over an epoch's batches, at most 50."""
        self.dense.eval()
        return taylor(self.dense, self.batches()[:50], _loss)

    def lottery(self) -> nn.Module:
        """Rounds of training and rewinding from a fresh network, to the same sparsity."""
        torch.manual_seed(self.seed)
        model = SmallResNet(self.data.image_size)

        def train(net: nn.Module, training: Training) -> None:
            optimizer = torch.optim.AdamW(net.parameters(), DENSE_RATE)
            training.hold(optimizer)
            self.fit(net, optimizer, self.plan.lottery)

        amount = 1.0 - (1.0 - SPARSITY) ** (1.0 / ROUNDS)
        rewind = max(1, len(self.batches()) // 4)
        lottery_ticket(model, train, amount=amount, rounds=ROUNDS, rewind_step=rewind,
                       ignore=[STEM, CLASSIFIER])  # fmt: skip
        reestimate_batchnorm(model, self.batches(), lambda net, batch: net(batch[0]))
        return model


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def sparsity_of(model: nn.Module) -> float:
    """The fraction of zeros in the weights that the methods prune."""
    weights = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and name != STEM
    ]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def measure(bench: Bench, name: str, method: Callable[[], nn.Module]) -> MethodRow:
    """Run a method and test what it returns."""
    bench.steps = 0
    start = time.perf_counter()
    model = method().eval()
    outputs = logits(model, bench.data.test_images.contiguous(memory_format=torch.channels_last))
    return MethodRow(
        name,
        bench.seed,
        sparsity_of(model),
        accuracy(outputs, bench.data.test_labels),
        bench.steps,
        time.perf_counter() - start,
    )


def summarise(rows: list[MethodRow]) -> dict[str, dict[str, float]]:
    """Mean accuracy of each method over seeds, its standard deviation, and the mean sparsity."""
    summary = {}
    for name in dict.fromkeys(row.method for row in rows):
        values = [row.accuracy for row in rows if row.method == name]
        summary[name] = {
            "accuracy": statistics.mean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "sparsity": statistics.mean(row.sparsity for row in rows if row.method == name),
            "seeds": len(values),
        }
    return summary


def checks(summary: dict[str, dict[str, float]]) -> list[Statement]:
    """What is expected of the means: the tolerance, and the orderings that others report."""
    mean = {name: values["accuracy"] for name, values in summary.items()}
    statements = [
        (f"gradual magnitude within {TOLERANCE:.1%} of dense", "gradual magnitude",
         "dense, trained on", TOLERANCE),
        ("gradual >= one-shot magnitude", "gradual magnitude", "one-shot magnitude", 0.0),
        ("magnitude >= random", "one-shot magnitude", "one-shot random", 0.0),
        ("Taylor >= random", "one-shot Taylor", "one-shot random", 0.0),
        ("global magnitude >= 4x1 blocks", "one-shot magnitude", "one-shot blocks 4x1", 0.0),
        ("lottery ticket >= random", "lottery ticket", "one-shot random", 0.0),
    ]  # fmt: skip
    return [
        Statement(text, mean[left], mean[right], mean[left] >= mean[right] - slack)
        for text, left, right, slack in statements
        if left in mean and right in mean
    ]


def show(results: PruningResults, console: Console) -> None:
    """Print a line a method, and the checks."""
    table = Table("method", title="accuracy, mean over seeds", title_justify="left")
    for heading in ("zeros", "accuracy", "deviation"):
        table.add_column(heading, justify="right")
    for name, values in results.summary.items():
        table.add_row(name, f"{values['sparsity']:.1%}", f"{values['accuracy']:.2%}",
                      f"{values['deviation']:.2%}")  # fmt: skip
    console.print(table)
    for check in results.checks:
        word = "[green]holds[/]" if check.holds else "[red]does not hold[/]"
        console.print(f"{check.name}: {check.left:.2%} and {check.right:.2%}, {word}")


def main(
    out: Annotated[Path, typer.Option(help="the JSON file to write")] = Path(
        "benchmarks/results/pruning/latest.json"
    ),
    data: Annotated[Path | None, typer.Option(help="folder of IDX files")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="few images, one seed")] = False,
    structures: Annotated[
        bool, typer.Option("--structures", help="unstructured, 4x1 and 1x4, in float32 and in int8")
    ] = False,
) -> None:
    """Compare the ways of pruning by the accuracy they keep, and write a result file."""
    console = Console()
    if structures:
        _compare_structures(out, data, quick, console)
        return
    plan = QUICK if quick else FULL
    results = PruningResults.begin(
        ["--out", shown(out), *(["--quick"] if quick else [])],
        {**asdict(plan), "sparsity": SPARSITY, "filters": FILTERS, "rounds": ROUNDS,
                  "quick": quick, "threads": torch.get_num_threads()},
    )  # fmt: skip
    try:
        for seed in range(plan.seeds):
            bench = Bench(load(data, seed, plan.images), plan, seed)
            results.settings["data"] = bench.data.name
            results.settings["train_images"] = len(bench.data.train_labels)
            results.settings["parameters"] = sum(p.numel() for p in bench.dense.parameters())
            for name, method in bench.methods():
                row = measure(bench, name, method)
                results.rows.append(row)
                console.print(f"seed {seed}: {name}, {row.sparsity:.1%} zeros, accuracy "
                              f"{row.accuracy:.2%}, {row.seconds:.0f} s")  # fmt: skip
        results.complete = True
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what was measured is kept[/]")
        raise typer.Exit(130) from None
    finally:
        results.summary = summarise(results.rows)
        results.checks = checks(results.summary)
        results.write(out)
        show(results, console)
        console.print(f"{len(results.rows)} rows written to {out}")


def _compare_structures(out: Path, data: Path | None, quick: bool, console: Console) -> None:
    plan = pruning_structures.QUICK if quick else pruning_structures.FULL
    results = pruning_structures.StructureResults.begin(
        ["--structures", "--out", shown(out), *(["--quick"] if quick else [])],
        {"quick": quick, "threads": torch.get_num_threads()},
    )
    try:
        pruning_structures.run(results, plan, partial(_images, data, plan.images), console)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what was measured is kept[/]")
        raise typer.Exit(130) from None
    finally:
        results.write(out)
        pruning_structures.show(results, console)
        console.print(f"{len(results.rows)} rows written to {out}")


def _images(folder: Path | None, images: int, seed: int) -> Dataset:
    return load(folder, seed, images)


if __name__ == "__main__":
    typer.run(main)
