"""The graph of an engine as an SVG drawing: nodes stand in the order in which they run.

They form one column, so that a box's place is its place in time; an edge to the next node is a
straight line, and one that skips nodes runs in a lane of its own beside the column. The colour of a
box is its share of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sparseinfer.export.profile import Profile, sparsity_of

__all__ = ["draw"]

WIDTH, HEIGHT, GAP = 380, 46, 18
"""Of a box, and between two."""

LANE, MARGIN = 12, 20
INPUT_FILL = "#eef3fa"
LONGEST = 52
"""Characters of a line of text; what is longer loses its middle."""

STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:12px;fill:#1a1a1a}.small{fill:#555}"
    ".box{stroke:#666;stroke-width:1}.edge{fill:none;stroke:#888;stroke-width:1.2;"
    "marker-end:url(#tip)}"
)
MARKER = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="#888"/></marker>'
)


def draw(
    nodes: Sequence[Mapping[str, Any]],
    tensors: Sequence[Mapping[str, Any]],
    profile: Profile | None = None,
) -> str:
    """The text of an SVG file; `profile` adds the time of each node.

    Raises:
        ValueError: the profile has other nodes.

    Example:
        >>> tensors = [{"name": name, "kind": kind, "shape": (1, 4)}
        ...            for name, kind in (("x", "input"), ("y", "computed"))]
        >>> node = {"name": "act", "op": "activation", "activation": "relu", "format": "",
        ...         "nnz": 0, "weights": 0, "operands": [0], "output": 1, "runs": True}
        >>> text = draw([node], tensors)
        >>> text.startswith("<svg"), "act" in text, text.count("<rect")
        (True, True, 2)
    """
    times = _times(nodes, profile)
    boxes = [
        _Box(index, [], (tensor["name"], f"input  {_shape(tensor['shape'])}"), INPUT_FILL)
        for index, tensor in enumerate(tensors)
        if tensor["kind"] == "input"
    ]
    boxes += [_node_box(node, tensors, time) for node, time in zip(nodes, times, strict=True)]
    row_of = {box.tensor: row for row, box in enumerate(boxes)}
    edges = [
        (row_of[tensor], row)
        for row, box in enumerate(boxes)
        for tensor in dict.fromkeys(box.reads)
        if tensor in row_of
    ]
    lanes = _lanes([edge for edge in edges if edge[1] - edge[0] > 1])
    width = 2 * MARGIN + WIDTH + LANE * (1 + max(lanes.values(), default=-1)) + MARGIN
    height = 2 * MARGIN + len(boxes) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="background:white">',
        f"<style>{STYLE}</style><defs>{MARKER}</defs>",
    ]
    parts += [_edge(edge, lanes.get(edge)) for edge in edges]
    parts += [_drawn(box, row) for row, box in enumerate(boxes)]
    return "\n".join([*parts, "</svg>\n"])


@dataclass(frozen=True)
class _Box:
    """What is drawn in one row: an input, or what a node computes."""

    tensor: int
    reads: Sequence[int]
    lines: tuple[str, str]
    fill: str


def _times(nodes: Sequence[Mapping[str, Any]], profile: Profile | None) -> list[Any]:
    """The profile of each node, None where it has none."""
    running = [node for node in nodes if node["runs"]]
    if profile is None:
        return [None] * len(nodes)
    found = [(own.name, own.op) for own in profile.nodes]
    if found != [(node["name"], node["op"]) for node in running]:
        raise ValueError(
            f"expected a profile of the engine's {len(running)} nodes, got one of {len(found)}; "
            "try engine.profile(inputs)"
        )
    left = iter(profile.nodes)
    return [next(left) if node["runs"] else None for node in nodes]


def _node_box(node: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]], time: Any) -> _Box:
    op = node["op"] if node["activation"] == "none" else f"{node['op']} + {node['activation']}"
    details = [op, _shape(tensors[node["output"]]["shape"])]
    sparsity = sparsity_of(node)
    if sparsity is not None:
        details.append(f"{node['format']} {sparsity:.0%} zeros")
    if time is not None:
        details.append(f"{time.ms:.3f} ms, {time.share:.0%}")
    reads = [tensor for tensor in node["operands"] if tensor is not None]
    share = 0.0 if time is None else time.share
    name = node["name"] or "(model)"
    return _Box(node["output"], reads, (name, "  ".join(details)), _colour(share))


def _colour(share: float) -> str:
    """From white to orange: a fifth of the time is as dark as it gets."""
    part = min(1.0, share / 0.2)
    return f"#ff{round(255 - 95 * part):02x}{round(255 - 195 * part):02x}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _lanes(edges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """A lane for each edge: the innermost in which none of the same rows runs."""
    lanes: dict[tuple[int, int], int] = {}
    ends: list[list[tuple[int, int]]] = []
    for edge in sorted(edges, key=lambda edge: (edge[1] - edge[0], edge)):
        free = (
            lane
            for lane, taken in enumerate(ends)
            if all(edge[1] <= start or end <= edge[0] for start, end in taken)
        )
        lanes[edge] = next(free, len(ends))
        if lanes[edge] == len(ends):
            ends.append([])
        ends[lanes[edge]].append(edge)
    return lanes


def _top(row: int) -> int:
    return MARGIN + row * (HEIGHT + GAP)


def _edge(edge: tuple[int, int], lane: int | None) -> str:
    start, end = edge
    if lane is None:
        x = MARGIN + WIDTH // 2
        return f'<path class="edge" d="M{x} {_top(start) + HEIGHT}V{_top(end)}"/>'
    right = MARGIN + WIDTH
    x = right + LANE * (lane + 1)
    y, down = _top(start) + HEIGHT - 12, _top(end) + 12
    return f'<path class="edge" d="M{right} {y}H{x}V{down}H{right}"/>'


def _drawn(box: _Box, row: int) -> str:
    y = _top(row)
    whole = [_printable(line) for line in box.lines]
    first, second = (escape(_short(line)) for line in whole)
    return (
        f'<g><title>{escape(" ".join(whole))}</title><rect class="box" x="{MARGIN}" y="{y}" '
        f'width="{WIDTH}" height="{HEIGHT}" rx="5" fill="{box.fill}"/>'
        f'<text x="{MARGIN + 10}" y="{y + 19}">{first}</text>'
        f'<text class="small" x="{MARGIN + 10}" y="{y + 36}">{second}</text></g>'
    )


def _printable(text: str) -> str:
    """A text without the characters that XML has not."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _short(text: str) -> str:
    """A line that fits its box."""
    half = LONGEST // 2 - 1
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"
