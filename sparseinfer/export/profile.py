"""How long each node of an engine takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["NodeProfile", "Profile", "profile_of"]


@dataclass(frozen=True)
class NodeProfile:
    """One node: milliseconds, its share of all, and what it computes a second.

    `gflops` counts the multiply-adds of the weights that are kept, two operations each; `sparsity`
    is None where there is no packed weight.
    """

    name: str
    op: str
    format: str
    sparsity: float | None
    ms: float
    share: float
    gflops: float


@dataclass(frozen=True)
class Profile:
    """The nodes that run, in their order.

    Example:
        >>> nodes = [{"name": "fc", "op": "linear", "format": "panel", "nnz": 5, "weights": 10,
        ...           "multiply_adds": 5, "runs": True}]
        >>> profile_of(nodes, [[2e-3], [1e-3]]).ms
        1.0
    """

    nodes: list[NodeProfile]

    @property
    def ms(self) -> float:
        """Milliseconds of all nodes."""
        return sum(node.ms for node in self.nodes)

    def to_json(self) -> str:
        return json.dumps([asdict(node) for node in self.nodes], indent=2)

    def __str__(self) -> str:
        width = max([4, *(len(node.name) for node in self.nodes)])
        lines = [f"{'node':{width}}  {'operator':<20} {'format':<7} zeros {'ms':>8} share GFLOP/s"]
        for node in self.nodes:
            zeros = "" if node.sparsity is None else f"{node.sparsity:.0%}"
            lines.append(
                f"{node.name:{width}}  {node.op:<20} {node.format:<7} {zeros:>5} {node.ms:8.3f} "
                f"{node.share:5.0%} {node.gflops:7.1f}"
            )
        lines.append(f"{'all':{width}}  {'':<20} {'':<7} {'':>5} {self.ms:8.3f}")
        return "\n".join(lines)


def profile_of(nodes: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[float]]) -> Profile:
    """The least seconds of each node over the runs."""
    least = [min(seconds) for seconds in zip(*runs, strict=True)]
    whole = sum(s for node, s in zip(nodes, least, strict=True) if node["runs"]) or 1.0
    return Profile([
        NodeProfile(
            node["name"], node["op"], node["format"], sparsity_of(node), 1e3 * seconds,
            seconds / whole, 2e-9 * node["multiply_adds"] / max(seconds, 1e-9),
        )
        for node, seconds in zip(nodes, least, strict=True)
        if node["runs"]
    ])  # fmt: skip


def sparsity_of(node: Mapping[str, Any]) -> float | None:
    """Share of zeros of a node's packed weight; None without one.

    Example:
        >>> sparsity_of({"nnz": 1, "weights": 4}), sparsity_of({"nnz": 0, "weights": 0})
        (0.75, None)
    """
    return 1 - node["nnz"] / node["weights"] if node["weights"] else None
