"""Count the instructions of the main kernels, and compare with the committed counts.

    python -m benchmarks.instructions             # make counts
    python -m benchmarks.instructions --record    # make counts COUNTS=--record

A guard without noise: a kernel that needs more instructions than it did is found on a busy machine
too. Two kinds of count, both exact for one compiler:

- calls: what valgrind's callgrind counts in one call on AVX2 (it knows no AVX-512), inside this
  library only, for the problems of csrc/testing/kernel_calls.cc;
- loops: what the disassembly shows of the innermost loops that multiply and add, for AVX-512 and
  NEON, grouped by the number of multiply-adds in an iteration.

A count that moved by more than 3%, in either direction, fails. Where that is meant, record.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sparseinfer.files import write_text

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ROOT / "benchmarks" / "instructions.json"
TOLERANCE = 0.03
RECORD = "make counts COUNTS=--record"

ISA_OBJECTS = "CMakeFiles/sparseinfer_isa.dir/csrc/kernels/isa"


@dataclass(frozen=True)
class Target:
    """An instruction set whose loops are counted, and how its disassembly reads."""

    name: str
    objdump: str
    fma: str
    load: str
    broadcast: str
    branch: str


FUNCTIONS = r"panel_tile_width<\w+, [16],(?!.*BFloat16).*|panel_(vector|narrow)(?!.*BFloat16).*"
"""The functions whose loops are counted: the tiles of one vector and of six, and those for few
tokens, for float32 weights. Names are demangled and without namespaces."""

TARGETS = (
    Target(
        "avx512",
        "objdump",
        fma=r"vfn?m(add|sub)\d+[ps]s ",
        # A memory operand that is read: not the last one, which is written.
        load=r"(?!lea|prefetch)\S+ +.*\(.*\).*,",
        broadcast=r"vbroadcastss |.*\{1to16\}",
        branch=r"j\S+ +([0-9a-f]+) <",
    ),
    Target(
        "neon",
        "aarch64-linux-gnu-objdump",
        fma=r"fml[as] |fn?m(add|sub) ",
        load=r"ld\S+ ",
        # A multiply-add takes one lane of a vector at no cost.
        broadcast=r"ld1r |dup ",
        branch=r"(?:b\.\S+|b|cbn?z|tbn?z) .*?([0-9a-f]+) <",
    ),
)


class CountError(RuntimeError):
    """What has to be counted is not there, or a tool failed."""


@dataclass(frozen=True)
class Loops:
    """The innermost loops of a function with the same number of multiply-adds: totals over them."""

    loops: int
    instructions: int
    loads: int
    broadcasts: int


def _run(command: list[str], **options: Any) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, **options)
    except FileNotFoundError as error:
        raise CountError(
            f"expected {command[0]} on PATH, got none, try apt-get install valgrind binutils "
            "binutils-aarch64-linux-gnu (Debian, Ubuntu)"
        ) from error
    except subprocess.CalledProcessError as error:
        raise CountError(f"{command[0]} failed: {error.stderr.strip()}") from error
    return done.stdout


# ---- calls ---------------------------------------------------------------------------------------


def own_instructions(profile: str, program: str) -> int:
    """Return the instructions that a callgrind file counts in the code of `program` itself.

    What the C library does is left out: it chooses its functions by the processor.

    Example:
        >>> profile = "ob=(1) /x/ours\\n1 5\\ncalls=1 2\\n3 70\\nob=(2) /x/libc\\n4 9"
        >>> own_instructions(profile, "ours")
        5
    """
    objects: dict[str, str] = {}
    total, here, inclusive = 0, False, False
    for line in profile.splitlines():
        if line.startswith(("ob=", "cob=")):
            number, _, name = line.partition("=")[2].partition(" ")
            if name:
                objects[number] = name
            if line.startswith("ob="):
                here = Path(objects[number]).name == program
        elif line.startswith("calls="):
            inclusive = True
        elif re.match(r"[+*\d-]", line):
            if here and not inclusive:
                total += int(line.split()[1])
            inclusive = False
    return total


def count_calls(build: Path) -> dict[str, int]:
    """Return the instructions of one call of each problem that `kernel_calls` knows, on AVX2.

    Raises:
        CountError: the program is not built, or valgrind is missing or fails.
    """
    program = build / "kernel_calls"
    if not program.exists():
        raise CountError(f"expected {program}, got no such file, try make counts")
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in _run([str(program)]).splitlines():
            profile = Path(folder) / "callgrind.out"
            _run(
                ["valgrind", "--tool=callgrind", "--toggle-collect=si_linear",
                 "--toggle-collect=si_conv", f"--callgrind-out-file={profile}", str(program), name],
                env={**os.environ, "SPARSEINFER_ISA": "avx2"},
            )  # fmt: skip
            counts[name] = own_instructions(profile.read_text(encoding="utf-8"), program.name)
    return counts


# ---- loops ---------------------------------------------------------------------------------------


def functions_of(disassembly: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Yield the functions of a disassembly: name without namespaces, and (address, instruction).

    Example:
        >>> text = "0000 <void si::f<int>(int)>:\\n   4:\\tret\\n"
        >>> list(functions_of(text))
        [('f<int>', [(4, 'ret')])]
    """
    name = ""
    lines: list[tuple[int, str]] = []
    for line in [*disassembly.splitlines(), "0 <>:"]:
        head = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if head:
            if lines:
                yield name, lines
            plain = re.sub(r"si::|\(anonymous namespace\)::", "", head[1])
            name, lines = re.sub(r"^void |\(.*$", "", plain), []
            continue
        body = re.match(r" *([0-9a-f]+):\s+(.*\S)", line)
        if body:
            lines.append((int(body[1], 16), re.sub(r"\s+", " ", body[2])))


def loops_of(instructions: list[tuple[int, str]], target: Target) -> dict[int, Loops]:
    """Return the innermost loops that multiply and add, by multiply-adds in an iteration."""
    spans = []
    for address, text in instructions:
        branch = re.match(target.branch, text)
        if branch and int(branch[1], 16) <= address:
            spans.append((int(branch[1], 16), address))
    found: dict[int, Loops] = {}
    for first, last in spans:
        if any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans):
            continue
        body = [text for address, text in instructions if first <= address <= last]

        fmas, loads, broadcasts = (
            sum(re.match(pattern, text) is not None for text in body)
            for pattern in (target.fma, target.load, target.broadcast)
        )
        if fmas:
            before = found.get(fmas, Loops(0, 0, 0, 0))
            found[fmas] = Loops(
                before.loops + 1,
                before.instructions + len(body),
                before.loads + loads,
                before.broadcasts + broadcasts,
            )
    return dict(sorted(found.items()))


def count_loops(target: Target, build: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Return the loops of the kernels in the target's object file: by function, by multiply-adds.

    Raises:
        CountError: the file or the functions are not there, or objdump is missing.
    """
    path = build / ISA_OBJECTS / f"{target.name}.cc.o"
    if not path.exists():
        raise CountError(f"expected {path}, got no such file, try make counts")
    text = _run([target.objdump, "-d", "-C", "--no-show-raw-insn", str(path)])
    counts = {}
    for name, lines in functions_of(text):
        loops = loops_of(lines, target) if re.fullmatch(FUNCTIONS, name) else {}
        if loops:
            counts[name] = {f"{fmas} fma": asdict(each) for fmas, each in loops.items()}
    if not counts:
        raise CountError(
            f"expected functions named as {FUNCTIONS} in {path.name}, got none, try naming in "
            "benchmarks/instructions.py those that the kernels have now"
        )
    return dict(sorted(counts.items()))


def compiler_of(path: Path) -> str:
    """Return the compiler and version that an object file names, without the distribution's."""
    found = re.search(r"\] +(\S.*)", _run(["readelf", "-p", ".comment", str(path)]))
    return re.sub(r" \(.*?\)", "", found[1]) if found else "unknown"


# ---- together ------------------------------------------------------------------------------------


def count(build: Path, neon_build: Path) -> dict[str, Any]:
    """Return all counts, and the compilers that they hold for.

    Raises:
        CountError: something to count or a tool is missing.
    """
    builds = {"avx512": build, "neon": neon_build}
    return {
        "compilers": {
            target.name: compiler_of(builds[target.name] / ISA_OBJECTS / f"{target.name}.cc.o")
            for target in TARGETS
        },
        "calls": count_calls(build),
        "loops": {target.name: count_loops(target, builds[target.name]) for target in TARGETS},
    }


def differences(expected: Any, found: Any, what: str = "") -> Iterator[str]:
    """Yield a line for every count that moved by more than the tolerance, or came or went.

    Example:
        >>> list(differences({"a": 100, "b": 100}, {"a": 103, "b": 104}))
        ['b: expected 100, got 104 (+4.0%)']
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            label = f"{what}, {key}" if what else key
            yield from differences(expected.get(key), found.get(key), label)
    elif isinstance(expected, int) and isinstance(found, int):
        if abs(found - expected) > TOLERANCE * expected:
            change = f" ({found / expected - 1:+.1%})" if expected else ""
            yield f"{what}: expected {expected:,}, got {found:,}{change}"
    elif expected != found:
        yield f"{what}: expected {expected}, got {found}"


def to_json(counts: dict[str, Any]) -> str:
    """Return the file's text, a line a function, so that a diff shows what moved."""
    return lines_of(counts, "loops")


def lines_of(record: dict[str, Any], first: str) -> str:
    """JSON in which an object whose first key is `first`, a number, is a line."""

    def one_line(found: re.Match[str]) -> str:
        return "{" + re.sub(r"\s+", " ", found[1]) + "}"

    text = json.dumps(record, indent=1)
    return re.sub(rf"\{{\s+(\"{first}\": \d[^{{}}]*?)\s+\}}", one_line, text) + "\n"


def main(
    record: Annotated[bool, typer.Option("--record", help="write the counts down")] = False,
    build: Annotated[Path, typer.Option(help="build directory with the tests")] = Path("build/dev"),
    neon_build: Annotated[Path, typer.Option(help="that of make neon")] = Path("build-neon"),
    counts: Annotated[Path, typer.Option(help="the file of counts")] = COUNTS,
) -> None:
    """Compare the kernels' instruction counts with the committed ones."""
    console = Console(soft_wrap=True, highlight=False)
    try:
        found = count(build, neon_build)
    except CountError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from error
    if record:
        write_text(counts, to_json(found))
        console.print(f"counts written to {counts.name}")
        return
    expected = json.loads(counts.read_text(encoding="utf-8"))
    lines = list(differences(expected, found))
    for line in lines:
        console.print(line, markup=False)
    if lines:
        console.print(
            f"[red]{len(lines)} counts differ by more than {TOLERANCE:.0%}; "
            f"where that is meant, try {RECORD}[/red]"
        )
        raise typer.Exit(1)
    console.print(f"the counts are within {TOLERANCE:.0%} of {counts.name}")


if __name__ == "__main__":
    typer.run(main)
