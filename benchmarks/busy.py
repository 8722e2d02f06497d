"""Converts beside real load, and shows what the report says of it and what is kept.

    python -m benchmarks.busy --load 4

Each conversion starts from an empty cache: once as the machine is, once beside `--load` processes
that do nothing but spin. The program fails where a comparison that is in doubt was kept, or where
what was kept says that a layer gains more than its zeros can give.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sparseinfer import Report, convert_to_sparse, report
from sparseinfer.convert.plausible import SLACK

SETTLE_S = 0.5


def network(layers: int, size: int, density: float) -> nn.Sequential:
    """Linear layers of `size` x `size` with zeros at random places.

    Example:
        >>> len(network(2, 8, 0.5))
        2
    """
    torch.manual_seed(0)
    linear = [nn.Linear(size, size) for _ in range(layers)]
    with torch.no_grad():
        for layer in linear:
            layer.weight *= torch.rand(size, size) < density
    return nn.Sequential(*linear).eval()


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Run so many processes that spin, until the block ends."""
    context = multiprocessing.get_context("spawn")
    spinning = [context.Process(target=_spin, daemon=True) for _ in range(processes)]
    for process in spinning:
        process.start()
    try:
        if spinning:
            spinning[0].join(SETTLE_S)
        yield
    finally:
        for process in spinning:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


def convert(model: nn.Module, x: torch.Tensor, threads: int, folder: Path) -> Report:
    """The report of a conversion that keeps its comparisons in `folder`."""
    return report(convert_to_sparse(model, example_inputs=x, threads=threads, cache=folder))


def suspects(folder: Path, density: float) -> list[str]:
    """The kept comparisons that are in doubt, or beyond what zeros can give.

    Example:
        >>> suspects(Path("nowhere"), 0.1)
        []
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        comparison = json.loads(path.read_text())["comparison"]
        if comparison["doubt"] or comparison["speedup"] > SLACK / density:
            found.append(f"{path.name}: {comparison}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert without and beside load, print both reports, and say what was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--density", type=float, default=0.1)
    options = parser.parse_args(arguments)
    model = network(options.layers, options.size, options.density)
    x = torch.randn(options.tokens, options.size)
    bad: list[str] = []
    for processes in (0, options.load):
        with tempfile.TemporaryDirectory() as folder, load(processes):
            found = convert(model, x, options.threads, Path(folder))
            kept = len(list(Path(folder).iterdir()))
            bad += suspects(Path(folder), options.density)
        print(f"--- beside {processes} spinning processes, {options.threads} threads")
        print(found)
        print(
            f"others had the processor for {found.busy:.0%} of the measured time; "
            f"{found.measured} comparisons, {found.doubted} in doubt, {kept} kept\n"
        )
    for line in bad:
        print(f"kept, and hard to believe: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
