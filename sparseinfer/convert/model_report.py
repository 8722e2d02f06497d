"""What was decided for a model: its layers, how they were timed, and the whole against dense."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from sparseinfer.codec import from_data, to_text
from sparseinfer.convert import report_tables
from sparseinfer.convert.grouping import Row, group
from sparseinfer.convert.layer_report import TORCH, LayerReport, describe, describe_sparse
from sparseinfer.convert.report_html import to_html
from sparseinfer.convert.scan import scan
from sparseinfer.convert.verdict import outcome, warning
from sparseinfer.files import write_text
from sparseinfer.timing.machine import HOST
from sparseinfer.timing.measure import Comparison

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = ["Report", "Whole", "forget", "report", "store"]

_ATTRIBUTE = "_sparseinfer_report"

_DERIVED = ("totals", "sentence", "warning", "rows")
"""What `Report.to_dict` tells beside the fields."""

_UNTIMED = "Nothing was timed: pass example_inputs to have layers and model measured."


@dataclass
class Whole:
    """The whole model, converted against dense: milliseconds a forward pass, at the example inputs.

    `baseline` is how the dense model was run (`sparseinfer.convert.guarantee`) and `tolerance` the
    share of its time by which the converted one may exceed it. `speedup` is dense over converted
    time, within `low` to `high`; it and `sparse_ms` are None where no layer is sparse. `before` and
    `before_low` are speed-up and lower bound before any layer was taken back, and `reverted` names
    those, in that order.
    """

    baseline: str
    tolerance: float
    dense_ms: float | None = None
    sparse_ms: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    before: float | None = None
    before_low: float | None = None
    reverted: list[str] = field(default_factory=list)

    def take(self, found: Comparison) -> None:
        """Note what the model was timed at, in place of an earlier timing."""
        self.dense_ms, self.sparse_ms, self.rounds = found.dense_ms, found.sparse_ms, found.rounds
        self.speedup, self.low, self.high = found.speedup, found.low, found.high
        if self.before is None:
            self.before, self.before_low = found.speedup, found.low


@dataclass
class Report:
    """The report of a model: `layers`, and how they were timed.

    `whole` is None where the whole model was not timed. `measured` and `kept` count the comparisons
    that were measured, and those that the tuning cache had. `busy` is the share of the measured
    time in which other programs had the processor, `load` the system's load average then, and
    `doubted` how many comparisons are in doubt, none of which is kept. `examples` tells whether
    there were example inputs to time anything with, and `target` is the machine it is for.
    `figures` are those that `evaluate` gave of the model and of the converted one.

    Example:
        >>> Report(layers=[]).sentence
        'The model has no linear or convolution layer.'
    """

    layers: list[LayerReport]
    converted: bool = False
    threads: int = 0
    device: str = ""
    min_speedup: float = 0.0
    whole: Whole | None = None
    measured: int = 0
    kept: int = 0
    busy: float = 0.0
    load: float | None = None
    doubted: int = 0
    examples: bool = True
    target: str = HOST
    figures: list[float] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, Any]:
        """Layers, sparse layers, bytes and times; `ratio` is the time now over the dense time.

        Only layers that were timed count in the times.
        """
        timed = [layer for layer in self.layers if layer.ms is not None]
        dense_ms = sum(layer.dense_ms or 0.0 for layer in timed)
        dense_int8 = sum(layer.format == TORCH for layer in self.layers)
        now_ms = sum(layer.ms or 0.0 for layer in timed)
        return {
            "layers": len(self.layers),
            "sparse_layers": sum(layer.is_sparse for layer in self.layers) - dense_int8,
            "dense_int8_layers": dense_int8,
            "timed_layers": len(timed),
            "dense_bytes": sum(layer.dense_bytes for layer in self.layers),
            "bytes": sum(layer.bytes for layer in self.layers),
            "dense_ms": dense_ms,
            "ms": now_ms,
            "ratio": now_ms / dense_ms if dense_ms else None,
        }

    @property
    def sentence(self) -> str:
        """Whether the model got faster, in one plain sentence, and what `evaluate` gave."""
        if len(self.figures) != 2:
            return self._verdict
        before, after = self.figures
        return f"{self._verdict} Evaluated: {before:.4g} before, {after:.4g} now."

    @property
    def _verdict(self) -> str:
        totals = self.totals
        count = totals["layers"]
        if count == 0:
            return "The model has no linear or convolution layer."
        if not self.converted:
            elements = sum(layer.dense_bytes for layer in self.layers)
            zeros = sum(layer.dense_bytes * layer.sparsity for layer in self.layers)
            return (
                f"{count} layers, {zeros / max(1, elements):.0%} of whose "
                "weights are zero, run as they are: convert_to_sparse(model, example_inputs=...) "
                "finds which gain."
            )
        text = f"{totals['sparse_layers']} of {count} layers run sparse"
        if totals["dense_int8_layers"]:
            text += f" and {totals['dense_int8_layers']} dense in int8"
        modelled = any(layer.timing == "modelled" for layer in self.layers)
        if self.whole is not None and (self.whole.speedup or self.whole.reverted):
            return f"{text}{outcome(self.whole)}"
        untimed = "" if self.examples else f" {_UNTIMED}"
        if self.target != HOST:
            untimed = f" Nothing of another machine, {self.target}, can be timed here."
        if self.device == "meta":
            return (
                f"{text}: the model is on the meta device, where weights have shapes and no "
                "values; try converting it once they are loaded."
            )
        if not any(layer.is_sparse for layer in self.layers):
            return f"{text}, so the model is as fast as it was.{untimed}"
        if totals["ratio"] is None:
            return f"{text}; none of them was timed.{untimed}"
        share = f"{totals['ratio']:.2f} of the dense time ({1 / totals['ratio']:.2f}x)"
        if modelled:
            return (
                f"{text}; without example_inputs nothing was timed, and the layers are modelled, "
                f"not measured, to take {share}."
            )
        return f"{text}; the measured layers take {share}; the whole model was not timed."

    @property
    def rows(self) -> list[Row]:
        """The layers as the tables show them: like ones together
        (`sparseinfer.convert.grouping`)."""
        return group(self.layers)

    @property
    def warning(self) -> str:
        """What made the measurements uncertain and what to do about it; empty where nothing did.

        Example:
            >>> Report([], True, 2, measured=8, busy=0.43).warning.partition(":")[0]
            'This machine is busy'
        """
        return warning(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers."""
        return {
            **asdict(self), "totals": self.totals, "sentence": self.sentence,
            "warning": self.warning, "rows": [row.to_dict() for row in self.rows],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Rebuild a report from `to_dict` (or from the JSON of `to_json`).

        Example:
            >>> Report.from_dict(Report(layers=[]).to_dict()) == Report(layers=[])
            True
        """
        return from_data(cls, {key: own for key, own in data.items() if key not in _DERIVED})

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The report as JSON, written to `path` too where one is given.

        Example:
            >>> import json
            >>> json.loads(Report(layers=[]).to_json())["totals"]["layers"]
            0
        """
        text = to_text(self.to_dict())
        if path is not None:
            write_text(path, text)
        return text.rstrip("\n")

    def table(self) -> Table:
        """The layers as a rich table with every column."""
        return report_tables.wide(self)

    @property
    def title(self) -> str:
        """How the model was converted, in a few words."""
        if not self.converted:
            return "layers as they are"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        machine = self.device if self.target == HOST else self.target
        text = f"converted for {machine}, {threads}, min_speedup={self.min_speedup:g}"
        if self.measured + self.kept == 0:
            return text
        return f"{text}; {self.measured} measured, {self.kept} from cache"

    def print(self) -> None:
        """Print the sentence and the table on standard output."""
        from rich.console import Console

        Console().print(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The verdict first, then every column where they fit, else those that matter most."""
        from rich.text import Text

        yield Text(self.sentence)
        if self.warning:
            yield Text(textwrap.fill(self.warning, min(options.max_width, report_tables.LINE)))
        yield Text()
        if options.max_width >= report_tables.WIDE:
            yield report_tables.wide(self)
        else:
            yield report_tables.narrow(self, options.max_width)
        yield report_tables.reasons(self, options.max_width)

    def __str__(self) -> str:
        from rich.console import Console

        # Wide enough for any table: text that goes to a file or a log is better not folded.
        told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
        text = io.StringIO()
        width = shutil.get_terminal_size().columns if told else 400
        Console(file=text, width=width, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _repr_html_(self) -> str:
        """The report as notebooks show it."""
        return to_html(self)


def report(model: nn.Module) -> Report:
    """Tell what was decided for every layer of a converted model, or what an unconverted one holds.

    Raises:
        TypeError: `model` is not an nn.Module.

    Example:
        >>> report(nn.Linear(8, 8)).layers[0].pattern
        'dense'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}; try report(model)")
    stored = vars(model).get(_ATTRIBUTE)
    if stored is not None:
        return Report.from_dict(stored)
    layers = [describe(layer, reason=layer.blocked) for layer in scan(model)]
    return Report(layers=layers + describe_sparse(model))


def store(model: nn.Module, result: Report) -> None:
    """Keep a report on the model as plain data, which deepcopy and pickle take along."""
    setattr(model, _ATTRIBUTE, result.to_dict())


def forget(model: nn.Module) -> None:
    """Take off the report that a model keeps, where there is one."""
    vars(model).pop(_ATTRIBUTE, None)
