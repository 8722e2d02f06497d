"""What structures of zeros cost in accuracy: `python -m benchmarks.pruning --structures`.

The demo's network is trained once a seed. For each structure and sparsity it is pruned gradually
while it trains on, and then trains a little longer in two ways: in float32, and in fake
quantisation. Both are tested in float32 and as int8 sparse layers, after as many steps.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.record import Record
from sparseinfer import add_fake_quant, calibrate, convert_to_sparse, remove_fake_quant
from sparseinfer.convert.calibrate import Calibration
from sparseinfer.demo.data import Dataset
from sparseinfer.demo.network import DENSE_LAYERS, DemoNet
from sparseinfer.demo.training import accuracy, logits
from sparseinfer.prune import PolynomialDecay, Pruner
from sparseinfer.prune.recover import fine_tune, reestimate_batchnorm

STRUCTURES = ("unstructured", "4x1", "1x4")
SPARSITIES = (0.8, 0.9)
BATCH = 128
DENSE_RATE, PRUNE_RATE, LAST_RATE = 4e-3, 2e-3, 5e-4
GROWTH = 0.6
"""Share of its steps over which gradual pruning grows."""

UPDATES = 10
CALIBRATION_IMAGES = 512
BATCHNORM_BATCHES = 10

LAST_WAYS = ("float32", "fake quantisation")
"""How a pruned network trains its last steps."""


@dataclass(frozen=True)
class StructurePlan:
    """Training images and seeds; steps of dense training, of pruning, and of what follows it."""

    images: int
    seeds: int
    dense: int
    prune: int
    last: int


FULL = StructurePlan(images=20_000, seeds=3, dense=312, prune=96, last=32)
QUICK = StructurePlan(images=500, seeds=1, dense=12, prune=8, last=2)


@dataclass
class StructureRow:
    """One network: how it was pruned and trained last, and the accuracies of it as fractions.

    `float32` is that of the pruned network, `int8` that of the converted one, all of whose linear
    layers and convolutions are int8. `sparsity` is that of the layers that were pruned.
    """

    seed: int
    structure: str
    wanted: float
    last: str
    sparsity: float
    float32: float
    int8: float
    seconds: float


@dataclass
class StructureSummary:
    """A structure at a sparsity: means of accuracies over seeds, and their standard deviations.

    `float32` and `int8` are of networks trained in float32 to the end, `tuned` is int8 after fake
    quantisation; `int8 loses` and `tuned loses` are what those lose to `float32`, seed by seed.
    """

    structure: str
    wanted: float
    sparsity: float
    seeds: int
    mean: dict[str, float]
    deviation: dict[str, float]


@dataclass(kw_only=True)
class StructureResults(Record):
    """Everything one run writes; `dense` are the accuracies of the dense networks, a seed each.

    They were trained as long as the pruned ones, their last steps in float32.
    """

    PROGRAM = "benchmarks.pruning"

    rows: list[StructureRow] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)
    summary: list[StructureSummary] = field(default_factory=list)


class Study:
    """The networks of one seed."""

    def __init__(self, data: Dataset, plan: StructurePlan, seed: int) -> None:
        self.data, self.plan, self.seed = data, plan, seed
        torch.manual_seed(seed)
        self.start: nn.Module = DemoNet(data.image_size)
        self.generator = torch.Generator().manual_seed(seed)
        self.train(self.start, plan.dense, DENSE_RATE)

    def batches(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many shuffled batches."""
        images, labels = self.data.train_images, self.data.train_labels
        size = min(BATCH, max(8, len(labels) // 8))
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(labels), generator=self.generator)
            part, order = order[:size], order[size:]
            # Training is several times faster in this layout.
            yield images[part].contiguous(memory_format=torch.channels_last), labels[part]

    def train(
        self, model: nn.Module, steps: int, rate: float, pruner: Pruner | None = None
    ) -> nn.Module:
        """Train in place with a cosine learning rate, a pruner's masks held; ends in evaluation."""
        nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        fine_tune(model, lambda: self.batches(steps), _loss, optimizer, epochs=1, pruner=pruner)
        # So few steps leave the statistics behind the weights.
        reestimate_batchnorm(model, self.batches(BATCHNORM_BATCHES), lambda net, own: net(own[0]))
        return model.eval()

    def pruned(self, structure: str, sparsity: float) -> tuple[nn.Module, Pruner]:
        """The network pruned by global magnitude, and the pruner with its masks."""
        model = copy.deepcopy(self.start)
        steps = self.plan.prune
        frequency = max(1, round(GROWTH * steps / UPDATES))
        end = max(1, round(GROWTH * steps / frequency)) * frequency
        schedule = PolynomialDecay(0.0, sparsity, 0, end, frequency=frequency)
        pruner = Pruner(model, None, schedule, structure=structure, ignore=DENSE_LAYERS)
        self.train(model, steps, PRUNE_RATE, pruner)
        pruner.finalize()
        return model, pruner

    def trained_on(self, pruned: nn.Module, masks: dict[str, Tensor], last: str) -> nn.Module:
        """A copy of the pruned network after its last steps, in float32 or fake quantisation."""
        model = copy.deepcopy(pruned)
        pruner = Pruner(model, ignore=DENSE_LAYERS)
        pruner.custom(masks)
        if last == "fake quantisation":
            add_fake_quant(model, self.scales(model))
        self.train(model, self.plan.last, LAST_RATE, pruner)
        pruner.finalize()
        return remove_fake_quant(model)

    def dense(self) -> float:
        """The accuracy of the dense network trained as long."""
        model = self.train(copy.deepcopy(self.start), self.plan.prune, PRUNE_RATE)
        return self.test(self.train(model, self.plan.last, LAST_RATE))

    def scales(self, model: nn.Module) -> Calibration:
        """Scales of the layers' inputs, from training images."""
        return calibrate(model, list(self.data.train_images[:CALIBRATION_IMAGES].split(BATCH)))

    def int8(self, model: nn.Module) -> nn.Module:
        """The int8 sparse network; every layer, so that speed here decides nothing."""
        return convert_to_sparse(
            model, weights="int8", activations="int8", calibration=self.scales(model),
            min_speedup=0, progress=False,
        )  # fmt: skip

    def test(self, model: nn.Module) -> float:
        """The accuracy on all test images."""
        images = self.data.test_images.contiguous(memory_format=torch.channels_last)
        return accuracy(logits(model, images), self.data.test_labels)

    def rows(self, structure: str, sparsity: float) -> Iterator[StructureRow]:
        """A row for each way of training the last steps."""
        since = time.perf_counter()
        pruned, pruner = self.pruned(structure, sparsity)
        for last in LAST_WAYS:
            model = self.trained_on(pruned, pruner.masks, last)
            converted = self.int8(model)
            yield StructureRow(
                self.seed, structure, sparsity, last, pruner.sparsity, self.test(model),
                self.test(converted), time.perf_counter() - since,
            )  # fmt: skip
            since = time.perf_counter()


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def summarise(rows: list[StructureRow]) -> list[StructureSummary]:
    """The rows of all seeds as one, a structure and sparsity each."""
    summary = []
    for wanted, structure in dict.fromkeys((row.wanted, row.structure) for row in rows):
        found = [row for row in rows if (row.wanted, row.structure) == (wanted, structure)]
        plain = {row.seed: row for row in found if row.last == LAST_WAYS[0]}
        tuned = {row.seed: row.int8 for row in found if row.last == LAST_WAYS[1]}
        seeds = sorted(plain.keys() & tuned.keys())
        if not seeds:
            continue
        values = {
            "float32": [plain[seed].float32 for seed in seeds],
            "int8": [plain[seed].int8 for seed in seeds],
            "tuned": [tuned[seed] for seed in seeds],
            "int8 loses": [plain[seed].float32 - plain[seed].int8 for seed in seeds],
            "tuned loses": [plain[seed].float32 - tuned[seed] for seed in seeds],
        }
        mean = {name: statistics.mean(own) for name, own in values.items()}
        deviation = {
            name: statistics.stdev(own) if len(own) > 1 else 0.0 for name, own in values.items()
        }
        sparsity = statistics.mean(plain[seed].sparsity for seed in seeds)
        summary.append(StructureSummary(structure, wanted, sparsity, len(seeds), mean, deviation))
    return summary


def show(results: StructureResults, console: Console) -> None:
    """Print a line a structure and sparsity."""
    table = Table("structure", title="accuracy, mean (deviation) over seeds", title_justify="left")
    for heading in ("zeros", "float32", "int8", "int8, fake-quant tuned"):
        table.add_column(heading, justify="right")
    for row in results.summary:
        cells = [f"{row.mean[name]:.2%} ({row.deviation[name]:.2%})"
                 for name in ("float32", "int8", "tuned")]  # fmt: skip
        table.add_row(row.structure, f"{row.sparsity:.1%}", *cells)
    console.print(table)
    if results.dense:
        console.print(f"dense, trained as long: {statistics.mean(results.dense):.2%}")


def run(
    results: StructureResults,
    plan: StructurePlan,
    load: Callable[[int], Dataset],
    console: Console,
) -> None:
    """Fill the results, a seed after the other; what is there is kept where it is interrupted."""
    results.settings |= {**asdict(plan), "structures": STRUCTURES, "sparsities": SPARSITIES}
    try:
        for seed in range(plan.seeds):
            study = Study(load(seed), plan, seed)
            results.settings["data"] = study.data.name
            results.settings["train_images"] = len(study.data.train_labels)
            results.dense.append(study.dense())
            for sparsity in SPARSITIES:
                for structure in STRUCTURES:
                    for row in study.rows(structure, sparsity):
                        results.rows.append(row)
                        console.print(
                            f"seed {seed}: {structure} {row.sparsity:.1%}, last steps in "
                            f"{row.last}: float32 {row.float32:.2%}, int8 {row.int8:.2%}, "
                            f"{row.seconds:.0f} s", highlight=False,
                        )  # fmt: skip
        results.complete = True
    finally:
        results.summary = summarise(results.rows)
