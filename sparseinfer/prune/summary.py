"""What a pruner has pruned, how much of each weight, and what it left alone and why."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparseinfer.prune.names import prefixes
from sparseinfer.prune.structures import NM, Structure
from sparseinfer.prune.targets import Target, unwrap

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["NEARLY_ALL", "Summary", "SummaryRow", "held", "nearly_emptied", "summarize"]

NEARLY_ALL = 0.99
"""A layer that loses more than this share of its weights hardly computes anything any more."""

_WIDTH = 120


@dataclass(frozen=True)
class SummaryRow:
    """A weight: its shape, its elements and how many of them are pruned; or why it was left."""

    name: str
    shape: list[int]
    elements: int
    pruned: int = 0
    reason: str = ""

    @property
    def sparsity(self) -> float:
        """The share that is pruned, 0 to 1."""
        return self.pruned / max(1, self.elements)


@dataclass
class Summary:
    """A row for each weight that is pruned and each that was left; prints as a table.

    `sparsity` is that of the weights that are pruned together, `of_model` counts all the model's
    parameters. `warnings` name the layers that lost over 99%.

    Example:
        >>> row = SummaryRow("fc.weight", [2, 4], 8, pruned=4)
        >>> Summary([row], elements=10).sparsity, Summary([row], elements=10).of_model
        (0.5, 0.4)
    """

    rows: list[SummaryRow]
    elements: int
    how: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def pruned(self) -> list[SummaryRow]:
        """The rows of the weights that masks hold."""
        return [row for row in self.rows if not row.reason]

    @property
    def left(self) -> list[SummaryRow]:
        """The rows of the weights that were left, each with its reason."""
        return [row for row in self.rows if row.reason]

    @property
    def sparsity(self) -> float:
        """The share of the weights with a mask that is pruned, 0 to 1."""
        total = sum(row.elements for row in self.pruned)
        return sum(row.pruned for row in self.pruned) / max(1, total)

    @property
    def of_model(self) -> float:
        """The share of all parameters that is pruned, 0 to 1."""
        return sum(row.pruned for row in self.pruned) / max(1, self.elements)

    @property
    def sentence(self) -> str:
        """The sums in words."""
        rows = self.pruned
        weights = sum(row.elements for row in rows)
        return (
            f"{len(rows)} weights hold masks: {self.sparsity:.1%} of their {weights:,} elements "
            f"are pruned, {self.of_model:.1%} of the model's {self.elements:,} parameters."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers."""
        return {**asdict(self), "sparsity": self.sparsity, "of_model": self.of_model}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, then the sums and the warnings."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.how or None, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("weight", overflow="fold", min_width=16)
        table.add_column("shape")
        table.add_column("pruned", justify="right")
        table.add_column("left because", overflow="fold", min_width=12)
        for row in self.rows:
            share = "" if row.reason else f"{row.sparsity:.1%}"
            shape = "x".join(map(str, row.shape))
            table.add_row(escape(row.name), shape, share, escape(row.reason))
        yield table
        yield Text(self.sentence)
        for text in self.warnings:
            yield Text(f"warning: {text}")

    def __str__(self) -> str:
        text = io.StringIO()
        from rich.console import Console

        Console(file=text, width=_WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def summarize(
    model: nn.Module,
    targets: Sequence[Target],
    masks: Mapping[str, Tensor],
    skipped: Mapping[str, str],
    structure: Structure | None = None,
    how: str = "",
) -> Summary:
    """Return the summary of a model, its masks, and the weights left out with their reasons.

    Listed as left are, too, weights in which the structure finds nothing to prune, and all other
    parameters of two or more dimensions: what is no layer's weight is never pruned.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> target = Target("weight", layer, "weight", ["weight"])
        >>> mask = torch.arange(8).view(2, 4) < 2
        >>> summarize(layer, [target], {"weight": mask}, {}).sparsity
        0.75
    """
    root = unwrap(model)
    rows = []
    for target in targets:
        row = held(target.name, masks[target.name])
        if row.pruned == 0 and isinstance(structure, NM):
            row = replace(row, reason=structure.spared(target.canonical(target.weight).shape))
        rows.append(row)
    listed = {id(target.weight) for target in targets}
    stored = dict(root.named_parameters(remove_duplicate=False))
    by_name = {_plain_name(name): parameter for name, parameter in stored.items()}
    for name, reason in skipped.items():
        skip = by_name.get(name)
        shape = [] if skip is None else list(skip.shape)
        rows.append(SummaryRow(name, shape, 0 if skip is None else skip.numel(), reason=reason))
        listed.add(id(skip))
    for name, parameter in root.named_parameters():
        part_of_skipped = not skipped.keys().isdisjoint(prefixes(_plain_name(name)))
        if parameter.dim() > 1 and id(parameter) not in listed and not part_of_skipped:
            layer, _, own = name.rpartition(".")
            kind = type(root.get_submodule(layer)).__name__
            reason = f"{own} of {kind}: not of a kind that is pruned"
            rows.append(SummaryRow(name, list(parameter.shape), parameter.numel(), reason=reason))
    elements = sum(parameter.numel() for parameter in root.parameters())
    texts = [text for row in rows if not row.reason for text in nearly_emptied(row)]
    return Summary(rows, elements, how, texts)


def nearly_emptied(row: SummaryRow) -> list[str]:
    """What to say of a weight that lost over 99%, where it did.

    Example:
        >>> nearly_emptied(SummaryRow("fc.weight", [1, 2], 2, 2))[0].partition(";")[0]
        "pruning emptied layer 'fc.weight': all its weights are zero"
    """
    advice = "try a lower amount, or ignore this layer"
    if row.pruned == row.elements:
        return [f"pruning emptied layer {row.name!r}: all its weights are zero; {advice}"]
    if row.sparsity > NEARLY_ALL:
        kept = row.elements - row.pruned
        return [
            f"pruning left {kept:,} of the {row.elements:,} weights of layer {row.name!r} "
            f"({row.sparsity:.2%} are zero); {advice}"
        ]
    return []


def held(name: str, mask: Tensor) -> SummaryRow:
    """The row of a weight and its mask, True = kept.

    Example:
        >>> held("fc.weight", torch.tensor([True, False])).sparsity
        0.5
    """
    pruned = mask.numel() - int(torch.count_nonzero(mask))
    return SummaryRow(name, list(mask.shape), mask.numel(), pruned)


def _plain_name(name: str) -> str:
    """A parameter's name as the weight's that it stores: without what masks add to it."""
    name = name.replace(".parametrizations.", ".").removeprefix("parametrizations.")
    return name.removesuffix(".original").removesuffix("_orig")
