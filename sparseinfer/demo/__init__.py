"""`sparseinfer demo`: train a small network, prune it, convert it, and say what that gained."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from sparseinfer.codec import to_text
from sparseinfer.convert.conversion import convert_to_sparse
from sparseinfer.convert.model_report import report
from sparseinfer.demo import show, training
from sparseinfer.demo.data import DataError, Dataset, load
from sparseinfer.demo.int8 import calibration_batches, dense_int8
from sparseinfer.demo.network import DemoNet
from sparseinfer.demo.plot import draw
from sparseinfer.demo.results import Agreement, Int8, Latency, Ratio, Results, Sizes, Speed
from sparseinfer.demo.sizes import bytes_in_memory, saved
from sparseinfer.files import check_folder, staged
from sparseinfer.timing.machine import cpu_model, package_version, selected_isa
from sparseinfer.timing.measure import torch_threads
from sparseinfer.timing.rounds import Plan, interleave

__all__ = ["DataError", "Options", "run"]

BATCHES = (1, 32)
MIN_ROUNDS, MAX_ROUNDS = 15, 400
# Keeps Fashion-MNIST near two minutes on two cores.
DEFAULT_TRAIN_IMAGES = 20_000
# Epochs by the size of the data: small data needs more of them, and they are short.
SMALL_DATA = 5_000
DEFAULT_EPOCHS = {"small": 6, "large": 3}


@dataclass(frozen=True)
class Options:
    """What the user chose; None leaves it to the demo.

    `data`: folder with IDX files; `out`: folder for the results; `epochs` of dense training,
    `prune_epochs` of pruning with fine-tuning; `train_images` to train on; `sparsity` as a
    fraction; `timing_s`: seconds of timing a batch size.
    """

    data: Path | None = None
    out: Path = Path("sparseinfer-demo")
    epochs: int | None = None
    prune_epochs: int | None = None
    train_images: int | None = None
    sparsity: float = 0.9
    seed: int = 0
    threads: int | None = None
    timing_s: float = 4.0


def run(options: Options, console: Console) -> Results:
    """Run the demo, print what it finds, and write demo.json, demo.png and the three models.

    Raises:
        DataError: the data cannot be used.
        OSError: the folder `options.out` cannot be written to.
    """
    check_folder(options.out)
    with torch_threads(options.threads) as threads, torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        results, models = _work(options, threads, console)
    found = report(models["converted"])
    console.print()
    console.print(show.layers(found))
    for line in show.reasons(found):
        console.print(line, highlight=False, markup=False)
    console.print()
    console.print(show.summary(results))
    for line in show.footnotes(results):
        console.print(line, highlight=False, markup=False)
    console.print()
    console.print(show.int8(results))
    for line in show.int8_footnotes(results):
        console.print(line, highlight=False, markup=False)
    console.print(results.verdict, style="bold", highlight=False)
    content = {
        "demo.json": to_text(results.to_dict(), finite=True).encode(),
        "demo.png": draw(results),
        "pruned.pt": saved(models["pruned"]),
        "converted.pt": saved(models["converted"]),
        "int8.pt": saved(models["int8"]),
    }
    with staged([options.out / name for name in content]) as unfinished:
        for path, data in zip(unfinished, content.values(), strict=True):
            path.write_bytes(data)
    console.print(
        f"\nWrote {', '.join(content)} to {options.out}/ "
        f"({results.seconds['total']:.0f} s in all).",
        highlight=False,
        markup=False,
    )
    return results


def _work(options: Options, threads: int, console: Console) -> tuple[Results, dict[str, nn.Module]]:
    start = time.perf_counter()
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str, title: str, total: int) -> Iterator[show.Advance]:
        since = time.perf_counter()
        with show.stage(console, title, total) as advance:
            yield advance
        seconds[name] = time.perf_counter() - since

    dataset = load(options.data, options.seed, options.train_images or DEFAULT_TRAIN_IMAGES)
    size = "small" if len(dataset.train_labels) < SMALL_DATA else "large"
    epochs = options.epochs or DEFAULT_EPOCHS[size]
    prune_epochs = options.prune_epochs or epochs
    machine = f"{cpu_model()}, {selected_isa()}, {threads} thread{'s' if threads > 1 else ''}"
    pruned = DemoNet(dataset.image_size)
    parameters = sum(parameter.numel() for parameter in pruned.parameters())
    _introduce(console, dataset, parameters, machine, epochs, prune_epochs)

    curve = training.Curve()
    dense_steps = training.steps_in(dataset, epochs)
    prune_steps = training.steps_in(dataset, prune_epochs)
    with timed("train", "Training", dense_steps) as advance:
        training.train(pruned, dataset, epochs, options.seed, curve, advance)
    dense = copy.deepcopy(pruned)
    with timed("prune", f"Pruning to {options.sparsity:.0%}", prune_steps) as advance:
        pruner = training.prune(
            pruned, dataset, prune_epochs, options.sparsity, options.seed, curve, advance
        )
    # The conversion draws a bar of its own.
    convert = partial(
        convert_to_sparse,
        pruned,
        example_inputs=[dataset.test_images[:batch] for batch in BATCHES],
        progress=console.is_terminal,
    )
    with timed("convert", "Converting", 0):
        converted = convert()
    samples = calibration_batches(dataset.train_images)
    with timed("convert to int8", "Converting to int8", 0):
        narrow = convert(weights="int8", activations="int8", calibration=samples)
        quantized, missing = dense_int8(dense, samples)
    models = {"dense": dense, "pruned": pruned, "converted": converted, "int8": narrow}
    if quantized is not None:
        models["dense int8"] = quantized
    with timed("test", "Testing", len(models)) as advance:
        outputs = {}
        for name, model in models.items():
            outputs[name] = training.logits(model, dataset.test_images)
            advance("")
    # No bar here: drawing it would take time from what is timed.
    with timed("time", "Timing", 0):
        speeds = []
        for batch in BATCHES:
            speeds.append(_speed(models, dataset.test_images[:batch], options.timing_s))
    seconds["total"] = time.perf_counter() - start
    results = Results(
        dataset=dataset.name,
        source=dataset.source,
        train_images=len(dataset.train_labels),
        available_train_images=dataset.available_train_images,
        test_images=len(dataset.test_labels),
        parameters=parameters,
        prunable_weights=sum(mask.numel() for mask in pruner.masks.values()),
        pruned_weights=sum(int((~mask).sum()) for mask in pruner.masks.values()),
        sparsity=pruner.sparsity,
        dense_steps=dense_steps,
        prune_steps=prune_steps,
        curve=curve,
        accuracy={
            name: training.accuracy(output, dataset.test_labels) for name, output in outputs.items()
        },
        agreement=_agreement(outputs["pruned"], outputs["converted"]),
        speeds=speeds,
        sizes=_sizes(pruned, converted),
        int8=Int8(
            calibration_images=sum(len(batch) for batch in samples),
            layers=sum(layer.weights == "int8" for layer in report(narrow).layers),
            agreement=_agreement(outputs["pruned"], outputs["int8"]),
            disk=len(saved(narrow)),
            dense_disk=None if quantized is None else len(saved(quantized)),
            missing=missing,
            report=report(narrow).to_dict(),
        ),
        report=report(converted).to_dict(),
        seed=options.seed,
        threads=threads,
        machine=machine,
        versions={
            name: package_version(name) for name in ("sparseinfer", "torch", "numpy", "matplotlib")
        },
        seconds=seconds,
    )
    return results, models


def _introduce(
    console: Console,
    dataset: Dataset,
    parameters: int,
    machine: str,
    epochs: int,
    prune_epochs: int,
) -> None:
    used, available = len(dataset.train_labels), dataset.available_train_images
    tested = len(dataset.test_labels)
    lines = (
        f"Data      {dataset.name} ({dataset.source})",
        f"Images    trains on {used:,} of {available:,} images, tests on {tested:,}",
        f"Network   four 3x3 convolutions, two linear layers, {parameters:,} parameters",
        f"Training  {epochs} epoch{'s' if epochs > 1 else ''} dense, {prune_epochs} while pruning: "
        "short on purpose",
        f"Machine   {machine}, torch {torch.__version__}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False)
    console.print()


def _agreement(pruned: Tensor, converted: Tensor) -> Agreement:
    return Agreement(
        images=len(pruned),
        different_classes=int((pruned.argmax(1) != converted.argmax(1)).sum()),
        largest_logit_difference=float((pruned - converted).abs().max()),
    )


def _sizes(pruned: nn.Module, converted: nn.Module) -> Sizes:
    return Sizes(
        pruned_memory=bytes_in_memory(pruned),
        converted_memory=bytes_in_memory(converted),
        pruned_disk=len(saved(pruned)),
        converted_disk=len(saved(converted)),
    )


def _speed(models: dict[str, nn.Module], images: Tensor, budget_s: float) -> Speed:
    """Time the models on one batch; dense and pruned in both of torch's memory formats.

    The faster format is what a user would take, so it is the one to compare with.
    """
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    timed_once = [name for name in models if name not in ("dense", "pruned")]
    calls = {name: partial(models[name], images) for name in timed_once}
    for name in ("dense", "pruned"):
        for layout, memory_format in layouts.items():
            model = nn.utils.convert_conv2d_weight_memory_format(
                copy.deepcopy(models[name]), memory_format
            )
            inputs = images.contiguous(memory_format=memory_format)
            calls[f"{name}, {layout}"] = partial(model, inputs)
    plan = Plan(rounds=MAX_ROUNDS, floor=MIN_ROUNDS, least=0.0, budget=budget_s, warm=0)
    with torch.inference_mode():
        found = interleave(calls, plan)
    latency = {name: Latency.of(found, name) for name in calls}
    fastest = {
        name: min(layouts, key=lambda layout: latency[f"{name}, {layout}"].median_ms)
        for name in ("dense", "pruned")
    }
    keys = {name: f"{name}, {layout}" for name, layout in fastest.items()}
    keys |= {name: name for name in timed_once}
    int8_over_dense_int8 = None
    if "dense int8" in models:
        int8_over_dense_int8 = Ratio.of(found.speedup("int8", over="dense int8"))
    return Speed(
        batch=len(images),
        latency={name: latency[key] for name, key in keys.items()},
        layout=fastest,
        over_dense=Ratio.of(found.speedup("converted", over=keys["dense"])),
        over_pruned=Ratio.of(found.speedup("converted", over=keys["pruned"])),
        all_layouts=latency,
        int8_over_dense_int8=int8_over_dense_int8,
    )
