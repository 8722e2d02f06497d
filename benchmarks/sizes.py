"""Build small programs of C for several processors, and compare sizes with the committed ones.

    python -m benchmarks.sizes             # make sizes
    python -m benchmarks.sizes --record    # make sizes SIZES=--record

A size is what .text, .rodata and .data take, constants that are relocated among them, in a program
that is stripped and linked with --gc-sections against the static library of one instruction set
without threads; the C library is shared. Of a microcontroller it is what the object of a model's
plain C takes, without its weights. Programs:

- core: a model in flash with sparse linear layers, convolutions and softmax in float32. The library
  has neither files nor messages, and is optimised when the program is linked;
- runner: sparseinfer-run with what perceptrons and convolutional networks need, in float32;
- mlp: the plain C of a perceptron of int8, 784-256-256-10, on Cortex-M.

A size that grew by more than 5% fails. Where that is meant, record.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn
from torch.nn.utils import prune

import sparseinfer
from benchmarks.instructions import compiler_of, lines_of
from sparseinfer.export.c.folder import files_of
from sparseinfer.files import write_text

ROOT = Path(__file__).resolve().parent.parent
SIZES = ROOT / "benchmarks" / "sizes.json"
BUILDS = ROOT / "build" / "sizes"
GROWTH = 0.05
RECORD = "make sizes SIZES=--record"

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=MinSizeRel",
    "-DSPARSEINFER_THREADS=OFF",
    "-DSPARSEINFER_SHARED=OFF",
    "-DSPARSEINFER_TESTS=OFF",
    "-DSPARSEINFER_CUDA=OFF",
    "-DSPARSEINFER_FORMATS=panel",
    "-DSPARSEINFER_TYPES=float32",
)
SECTIONS = re.compile(r"\.(text|rodata|data|sdata|srodata)(\.|2?$)")
"""What counts, by the names that linkers give; the first word says as what."""


@dataclass(frozen=True)
class Program:
    """A program, and the options of the library that it is linked with."""

    name: str
    target: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Processor:
    """A processor, the prefix of its tools, the instruction set, and its toolchain file or ""."""

    name: str
    prefix: str
    instruction_set: str
    toolchain: str


PROGRAMS = (
    Program(
        "core",
        "sparseinfer_core",
        (
            "-DSPARSEINFER_OPERATORS=linear;conv;softmax",
            "-DSPARSEINFER_FILES=OFF",
            "-DSPARSEINFER_MESSAGES=OFF",
            "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON",
        ),
    ),
    Program(
        "runner",
        "sparseinfer-run",
        (
            "-DSPARSEINFER_OPERATORS=linear;conv;depthwise_conv;add;activation;max_pool;"
            "average_pool;global_average_pool;reshape;softmax;concat",
        ),
    ),
)

PROCESSORS = (
    Processor("aarch64", "aarch64-linux-gnu-", "neon", "aarch64-linux-gnu.cmake"),
    Processor("armv7", "arm-linux-gnueabihf-", "NONE", "arm-linux-gnueabihf.cmake"),
    Processor("riscv64", "riscv64-linux-gnu-", "NONE", "riscv64-linux-gnu.cmake"),
    Processor("x86_64", "x86_64-linux-gnu-", "NONE", ""),
)


CORES = {
    "cortex-m3": ("-mcpu=cortex-m3", "-mfloat-abi=soft"),
    "cortex-m4": ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
}
"""Microcontrollers, by the flags of their compiler. The M3 has no floating-point unit."""

PLAIN_C = ("-Os",)
ARM = "arm-none-eabi-"


class SizeError(RuntimeError):
    """A program cannot be built or read."""


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SizeError(f"{' '.join(command)} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def sizes_of(table: str) -> dict[str, int]:
    """Return what a program takes by the table that `size -A` prints: text, rodata, data, total.

    Example:
        >>> sizes_of(".text 70 0\\n.rodata 20 0\\n.data.rel.ro 8 0\\n.data 2 0\\n.bss 99 0\\n")
        {'text': 70, 'rodata': 20, 'data': 10, 'total': 100}
    """
    found = {"text": 0, "rodata": 0, "data": 0}
    kinds = {"sdata": "data", "srodata": "rodata"}
    for line in table.splitlines():
        words = line.split()
        section = SECTIONS.match(words[0]) if len(words) == 3 else None
        if section:
            found[kinds.get(section[1], section[1])] += int(words[1])
    return {**found, "total": sum(found.values())}


def measure(processor: Processor, program: Program) -> tuple[dict[str, int], str]:
    """Build a program, and return its sizes and its compiler.

    Raises:
        SizeError: it cannot be built.
    """
    build = BUILDS / f"{processor.name}-{program.name}"
    options = [*OPTIONS, *program.options]
    options.append(f"-DSPARSEINFER_INSTRUCTION_SETS={processor.instruction_set}")
    if processor.toolchain:
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / processor.toolchain}")
    _run(["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options])
    _run(["cmake", "--build", str(build), "--target", program.target])
    linked = build / "sparseinfer-run"
    if program.name == "core":
        linked = build / "core"
        # Compiled apart: what the linker knew of the file would be computed there.
        source = str(ROOT / "benchmarks" / "edge" / "core.c")
        include = f"-I{ROOT / 'csrc' / 'include'}"
        gcc = f"{processor.prefix}gcc"
        _run([gcc, "-Os", "-c", include, source, "-o", f"{linked}.o"])
        _run(
            [gcc, "-Os", "-flto", f"{linked}.o", str(build / "lib" / "libsparseinfer.a"), "-lm",
             "-Wl,--gc-sections", "-o", str(linked)]
        )  # fmt: skip
    _run([f"{processor.prefix}strip", "-o", f"{linked}.stripped", str(linked)])
    table = _run([f"{processor.prefix}size", "-A", f"{linked}.stripped"])
    return sizes_of(table), compiler_of(linked)


def write_mlp(folder: Path) -> None:
    """Write the plain C of a perceptron of int8 with 90% zeros, named net."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            prune.l1_unstructured(layer, "weight", amount=0.9)
            prune.remove(layer, "weight")
    x = torch.randn(4, 784)
    engine = sparseinfer.compile(
        nn.Sequential(*layers).eval(), x[:1], weights="int8", calibration=[x[:1], x[1:2]],
        baselines=(),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files_of(engine, "amalgamation", "net").items():
        (folder / name).write_bytes(content)


def measure_plain_c(core: str) -> tuple[dict[str, int], str]:
    """Compile the plain C of the perceptron, and return the sizes of the object and its compiler.

    Raises:
        SizeError: it cannot be compiled.
    """
    folder = BUILDS / core
    write_mlp(folder)
    compiled = folder / "net.o"
    source = str(folder / "sparseinfer.c")
    _run([f"{ARM}gcc", *PLAIN_C, *CORES[core], "-c", source, "-o", str(compiled)])
    return sizes_of(_run([f"{ARM}size", "-A", str(compiled)])), compiler_of(compiled)


def measure_all(console: Console) -> dict[str, Any]:
    """Return the sizes of all programs whose compiler is here, by processor, and print them.

    Raises:
        SizeError: a program cannot be built.
    """
    found: dict[str, Any] = {}
    for processor in PROCESSORS:
        if shutil.which(f"{processor.prefix}g++") is None:
            console.print(f"{processor.name}: skipped, no {processor.prefix}g++ on PATH")
            continue
        line: dict[str, Any] = {"instruction set": processor.instruction_set}
        for program in PROGRAMS:
            sizes, line["compiler"] = measure(processor, program)
            line[program.name] = sizes
            parts = ", ".join(f"{kind} {size:,}" for kind, size in sizes.items() if kind != "total")
            console.print(
                f"{processor.name:8} {program.name:7} {sizes['total']:8,} bytes ({parts})"
            )
        found[processor.name] = line
    for core in CORES:
        if shutil.which(f"{ARM}gcc") is None:
            console.print(f"{core}: skipped, no {ARM}gcc on PATH")
            continue
        sizes, compiler = measure_plain_c(core)
        found[core] = {"instruction set": "thumb", "compiler": compiler, "mlp": sizes}
        console.print(f"{core:9} mlp    {sizes['total']:8,} bytes")
    return found


def growth(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Yield a line for every program that grew too much, or that cannot be compared.

    Example:
        >>> before = {"arm": {"compiler": "GCC: 12", "core": {"total": 100}}}
        >>> list(growth(before, {"arm": {"compiler": "GCC: 12", "core": {"total": 105}}}))
        []
        >>> list(growth(before, {"arm": {"compiler": "GCC: 12", "core": {"total": 106}}}))
        ['arm, core: expected 100 bytes at most 5% more, got 106 (+6.0%)']
    """
    for name, line in found.items():
        before = expected.get(name, {})
        if before.get("compiler") != line["compiler"]:
            was = before.get("compiler", "none")
            yield f"{name}: expected sizes of {line['compiler']}, got a record of {was}"
            continue
        for program, sizes in line.items():
            if not isinstance(sizes, dict):
                continue
            least, most = before.get(program, {}).get("total", 0), sizes["total"]
            if least == 0:
                yield f"{name}, {program}: expected a recorded size, got none"
            elif most > least * (1 + GROWTH):
                yield (
                    f"{name}, {program}: expected {least:,} bytes at most {GROWTH:.0%} more, got "
                    f"{most:,} ({most / least - 1:+.1%})"
                )


def to_json(programs: dict[str, Any]) -> str:
    """Return the file's text, a line a program, so that a diff shows what moved."""
    record = {
        "date": datetime.now(tz=timezone.utc).date().isoformat(),
        "options": [*OPTIONS],
        "programs of": {
            **{program.name: [*program.options] for program in PROGRAMS},
            "mlp": [*PLAIN_C],
        },
        "sizes": programs,
    }
    return lines_of(record, "text")


def main(
    record: Annotated[bool, typer.Option("--record", help="write the sizes down")] = False,
    sizes: Annotated[Path, typer.Option(help="the file of sizes")] = SIZES,
) -> None:
    """Compare the sizes of small programs with the committed ones."""
    console = Console(soft_wrap=True, highlight=False)
    try:
        found = measure_all(console)
    except SizeError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from error
    if record:
        write_text(sizes, to_json(found))
        console.print(f"sizes written to {sizes.name}")
        return
    lines = list(growth(json.loads(sizes.read_text(encoding="utf-8"))["sizes"], found))
    for line in lines:
        console.print(line, markup=False)
    if lines:
        console.print(f"[red]{len(lines)} sizes grew; where that is meant, try {RECORD}[/red]")
        raise typer.Exit(1)
    console.print(f"the sizes are within {GROWTH:.0%} of {sizes.name}")


if __name__ == "__main__":
    typer.run(main)
