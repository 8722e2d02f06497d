"""What an engine is, and how it ran against the model as it was: data, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparseinfer.export.profile import sparsity_of
from sparseinfer.timing.measure import CONFIDENCE, Comparison

__all__ = ["EngineReport", "Race"]


@dataclass(frozen=True)
class Race:
    """The engine against another way to run the model; `why` it was not timed, where it was not.

    Example:
        >>> print(Race("the model as it was", Comparison(2.0, 1.0, 2.0, 1.9, 2.1, 8)))
        2.00x the model as it was (1.000 ms against 2.000 ms; 95%: 1.90x to 2.10x)
    """

    other: str
    found: Comparison | None
    why: str = ""

    @property
    def is_slower(self) -> bool:
        """Whether the engine is surely the slower one."""
        return self.found is not None and self.found.high < 1

    def __str__(self) -> str:
        if self.found is None:
            return f"not timed against {self.other}: {self.why}"
        found = self.found
        doubt = f"; in doubt: {found.doubt}" if found.doubt else ""
        slower = f"; slower: keep {self.other}" if self.is_slower else ""
        return (
            f"{found.speedup:.2f}x {self.other} ({found.sparse_ms:.3f} ms against "
            f"{found.dense_ms:.3f} ms; {CONFIDENCE}: {found.low:.2f}x to {found.high:.2f}x)"
            f"{slower}{doubt}"
        )


@dataclass(frozen=True)
class EngineReport:
    """The nodes of an engine, its bytes, its threads, and its races.

    `error` tells how far its outputs were from the model's; empty where nobody looked. `most_batch`
    is the largest batch of a call; 0 where it is the example's, which all else is told for.
    """

    nodes: Sequence[Mapping[str, Any]]
    file_bytes: int
    arena_bytes: int
    threads: int
    races: Sequence[Race]
    error: str
    most_batch: int = 0

    def __str__(self) -> str:
        running = [node for node in self.nodes if node["runs"]]
        lines = [
            f"{len(running)} nodes, {self.file_bytes:,} bytes of file, "
            f"{self.arena_bytes:,} bytes of arena, {self.threads} threads"
        ]
        if self.most_batch:
            lines.append(f"any batch up to {self.most_batch:,}")
        narrow = sum(node["type"] == "uint8" for node in running)
        if narrow:
            lines.append(f"{narrow} of them compute on bytes, {len(running) - narrow} on float32")
        pairs = sum(node["type"] == "bfloat16" for node in running)
        if pairs:
            lines.append(f"{pairs} of them multiply bfloat16, {len(running) - pairs} float32")
        lines += [str(race) for race in self.races] or ["not timed"]
        lines.append(self.error or "outputs not compared with the model's")
        for node in running:
            sparsity = sparsity_of(node)
            zeros = "" if sparsity is None else f" {node['format']}, {sparsity:.0%} zeros"
            kind = "" if node["type"] == "float32" else f", {node['type']}"
            lines.append(f"  {node['name'] or '(model)'}: {node['op']}{zeros}{kind}")
        return "\n".join(lines)
