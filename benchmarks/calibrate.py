"""Fit the cost model to this machine: ``python -m benchmarks.calibrate``.

The drop-in layers are timed against torch's over a grid of operations, N, densities and threads,
the model's few parameters are fitted (see `sparseinfer.timing.rates`), and written to where
`convert_to_sparse` without `example_inputs` looks for them. What is printed tells how far the model
is off, and what its choice of a format costs beside the best one.

``--as-python FILE`` writes the parameters as `sparseinfer/timing/builtin_rates.py`, which every
other machine uses.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from benchmarks.cases import CONV, Case, ConvCase, LinearCase, Pattern
from benchmarks.command import parse_threads, warn_if_busy
from benchmarks.fit import Calls, Cell, Quality, fit, held_out, judge
from benchmarks.layer_data import LayerData
from benchmarks.machine import describe_commit
from benchmarks.native import pack
from benchmarks.suites import COLD_BYTES
from sparseinfer.files import write_text
from sparseinfer.layers.kinds import kind_named
from sparseinfer.timing import calibration
from sparseinfer.timing.machine import cache_sizes, cpu_model, selected_isa, usable_cores
from sparseinfer.timing.rates import TOKENS, Model
from sparseinfer.timing.rounds import Plan, Rotation, interleave

PLAN = Plan(rounds=9, floor=3, sample=5e-4, least=0.0, budget=0.1)
QUICK_PLAN = Plan(rounds=3, floor=3, sample=3e-4, least=0.0, budget=0.03)

SMALL_SHAPES = ((256, 256), (768, 768), (3072, 768), (768, 3072))
"""Weights that stay in a cache between two calls."""

LARGE_SHAPE, QUICK_LARGE_SHAPE = (4096, 4096), (2048, 2048)
"""Copies of them are rotated through, so that none is found in a cache."""

N_OF_CLASS = {1: (1,), 2: (4, 2), 5: (8,), 9: (16,), 17: (32,), 33: (128, 512)}
"""What is measured of each class; only the first where time is short. That is the most of a class:
where one N cannot tell the weights' share from the tokens', fewer tokens make dense look faster."""

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
QUICK_DENSITIES = (0.05, 0.1, 0.3, 0.5)
N_OF_M = (Pattern.n_m(2, 4), Pattern.n_m(1, 4), Pattern.n_m(1, 8))

STRIDED = (ConvCase(256, 256, 28, 3, stride=2), ConvCase(512, 512, 14, 3, stride=2))
"""Beside the one of `benchmarks.cases`: one size cannot tell weights from pixels."""

CONVOLUTIONS = (*CONV, *STRIDED)
QUICK_CONV = (CONV[1], CONV[3], CONV[4], STRIDED[0], CONV[6], CONV[11])
"""Two of each class."""

DEFAULT_CACHE_BYTES = 32e6
"""Where the system does not tell the size of its caches."""


@dataclass(frozen=True)
class Point:
    """A layer to be timed at every number of threads, and the class that it stands for."""

    name: str
    case: Case
    pattern: Pattern

    @property
    def formats(self) -> tuple[str, ...]:
        """What meets dense there."""
        return ("panel", "csr") if self.pattern.n_of_m is None else ("nm",)

    @property
    def copies(self) -> int:
        """Dense weights to rotate through."""
        if not self.name.endswith("memory"):
            return 1
        return COLD_BYTES // (4 * self.case.m * self.case.k) + 1


def points(*, quick: bool = False) -> Iterator[Point]:
    """Yield the grid, neighbours of one weight together."""
    densities = QUICK_DENSITIES if quick else DENSITIES
    small = SMALL_SHAPES[:2] if quick else SMALL_SHAPES
    for m, k in (*small, QUICK_LARGE_SHAPE if quick else LARGE_SHAPE):
        large = (m, k) not in small
        patterns = [Pattern(1 - density) for density in densities]
        # Two shapes tell how n:m, which never wins, depends on the size.
        patterns += N_OF_M if large or (m, k) == (768, 768) else ()
        for pattern, least in itertools.product(patterns, TOKENS):
            if large and least == TOKENS[-1]:
                continue
            for n in N_OF_CLASS[least][: 1 if quick else None]:
                suffix = " memory" if large else ""
                yield Point(f"linear {least}{suffix}", LinearCase(m, k, n), pattern)
    for case in QUICK_CONV if quick else CONVOLUTIONS:
        kind = "conv strided" if case.stride > 1 else f"conv {'1x1' if case.kernel == 1 else 'kxk'}"
        patterns = [Pattern(1 - density) for density in densities]
        patterns += N_OF_M if case in QUICK_CONV else ()
        for pattern in patterns:
            yield Point(kind, case, pattern)


def layers_of(data: LayerData, name: str, copies: int) -> list[nn.Module]:
    """Return copies of the drop-in layer of format ``name``; of torch's where it is dense."""
    case, bias = data.case, data.bias
    kind = kind_named("linear")
    args: tuple[int, ...] = (case.k, case.m)
    if isinstance(case, ConvCase):
        kind = kind_named("conv2d")
        args = (case.c, case.m, case.kernel, case.stride, case.padding)
    if name == "dense":
        with torch.device("meta"):  # where no random number is drawn
            like = kind.sparse.dense_type(*args)
        biases = {} if bias is None else {"bias": bias}
        return [kind.rebuild(like, data.weight.clone(), biases).eval() for _ in range(copies)]
    packed = pack(case, data.pattern, name).blob
    # A sparse weight is smaller: one copy more than as many bytes take.
    copies = 1 if copies == 1 else COLD_BYTES // packed.numel() + 2
    layers = [kind.sparse(*args, packed=packed.clone()) for _ in range(copies)]
    for layer in layers:
        layer.load_state_dict({"packed": layer.packed, "bias": bias})
    return [layer.eval() for layer in layers]


def call_of(layer: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """Return a callable without arguments."""
    return lambda: layer(x)


def time_point(point: Point, threads: Sequence[int], plan: Plan) -> list[Cell]:
    """Time a point at every number of threads, all contenders in turns.

    Results are not compared here: the tests and `benchmarks.run` do.
    """
    case, data = point.case, LayerData(point.case, point.pattern)
    names = ("dense", *point.formats)
    calls = {
        name: Rotation(name, [call_of(one, data.x) for one in layers_of(data, name, point.copies)])
        for name in names
    }
    density = data.nnz / data.weight.numel()
    cells = []
    with torch.inference_mode():
        for count in threads:
            torch.set_num_threads(count)
            taken = interleave(calls, plan, collect=False)
            # The lower quartile: what another process takes away is none of the layer's cost.
            seconds = {name: taken.timing(name).seconds.q1 for name in names}
            cells.append(
                Cell(case.name, point.name, case.m, case.k, case.n, density, count, seconds)
            )
    return cells


def time_calls(threads: Sequence[int], plan: Plan) -> Calls:
    """Time layers so small that a call is all that takes time."""
    found: dict[int, dict[str, tuple[float, float]]] = {count: {} for count in threads}
    for kind, case in (("linear", LinearCase(16, 16, 1)), ("conv", ConvCase(16, 16, 1, 1))):
        point = Point(kind, case, Pattern(0.9))
        for cell in time_point(point, threads, plan):
            dense, sparse = cell.seconds["dense"], cell.seconds["panel"]
            found[cell.threads][kind] = (round(1e6 * dense, 3), round(1e6 * sparse, 3))
    return found


def last_level_cache() -> float:
    """Return the bytes of the largest cache."""
    sizes = re.findall(r"(\d+)([KMG])", " ".join(text.split()[-1] for text in cache_sizes()))
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((float(count) * scale[unit] for count, unit in sizes), default=DEFAULT_CACHE_BYTES)


def print_quality(console: Console, fitted: Quality, unseen: Quality) -> None:
    """Print how far the model is off, and what its choices cost."""
    table = Table("", "fitted to all", "on the half not fitted to")
    for key, value in fitted.summary().items():
        other = unseen.summary()[key]
        shares = "error" in key or "choices" in key
        show = "{:.1%}" if shares else "{:.2f}" if "regret" in key else "{:.0f}"
        table.add_row(key.replace("_", " "), show.format(value), show.format(other))
    console.print(table)


def as_python(model: Model, source: str) -> str:
    """Return the text of `sparseinfer/timing/builtin_rates.py`."""
    lines = [
        '"""The cost model\'s parameters where none were fitted on the machine itself.',
        "",
        source,
        '"""',
        "",
        "# Written by benchmarks.calibrate --as-python; sparseinfer.timing.rates says what it is.",
        "",
        "from typing import Any",
        "",
        f'ISA = "{selected_isa()}"',
        '"""The instruction set of the kernels that were timed."""',
        "",
        "# fmt: off",
        "MODEL: dict[str, Any] = {",
        f'    "cache_bytes": {model.cache_bytes:.0f},',
        f'    "error": {model.error},',
        '    "threads": {',
    ]
    for count, rates in model.as_json()["threads"].items():
        lines += [f'        "{count}": {{', f'            "calls": {json.dumps(rates["calls"])},']
        lines.append('            "work": {')
        for name, own in rates["work"].items():
            lines.append(f'                "{name}": {{')
            lines += [
                f'                    "{contender}": {json.dumps(parts)},'
                for contender, parts in own.items()
            ]
            lines.append("                },")
        lines += ["            },", "        },"]
    return "\n".join([*lines, "    },", "}", ""])


def main(
    out: Annotated[
        Path | None, typer.Option(help="the file; default: where the package looks for it")
    ] = None,
    threads: Annotated[str, typer.Option(help="such as 1,8; default: 1 and all cores")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="a coarse grid, under 40 seconds")] = False,
    python: Annotated[
        Path | None, typer.Option("--as-python", help="write the built-in parameters there too")
    ] = None,
) -> None:
    """Fit the cost model to this machine and print its error."""
    console = Console()
    counts = parse_threads(threads) if threads else sorted({1, usable_cores()})
    path = out or calibration.default_path()
    if path is None:
        raise typer.BadParameter("expected --out, as SPARSEINFER_CACHE is off; try --out FILE")
    warn_if_busy(console, usable_cores(), "not to be kept")
    plan = QUICK_PLAN if quick else PLAN
    before = torch.get_num_threads()
    gc.freeze()  # what is loaded stays; looking through it before each timing takes 0.1 s
    try:
        calls = time_calls(counts, PLAN)
        cells = [
            cell
            for point in track(list(points(quick=quick)), "timing", console=console)
            for cell in time_point(point, counts, plan)
        ]
    finally:
        torch.set_num_threads(before)
        gc.unfreeze()
    size = last_level_cache()
    model = fit(cells, calls, size)
    fitted = judge((model, cell) for cell in cells)
    unseen = held_out(cells, calls, size)
    model = replace(model, error=round(unseen.summary()["error_of_90%"], 3))
    print_quality(console, fitted, unseen)
    figures = {"fitted": fitted.summary(), "held_out": unseen.summary()}
    calibration.save(path, model, figures)
    console.print(f"written to {path}")
    if python is not None:
        commit = (describe_commit()["hash"] or "unknown")[:10]
        source = (
            f"Fitted on {datetime.date.today()} at commit {commit} on {cpu_model()},\n"
            f"{' and '.join(map(str, counts))} threads: half of the times off by less than "
            f"{unseen.summary()['median_error']:.0%}, {unseen.near:.0%} of the choices within 5%\n"
            "of the best, where not fitted to."
        )
        write_text(python, as_python(model, source))
        console.print(f"written to {python}")


if __name__ == "__main__":
    typer.run(main)
