"""Where the tensors of a model lie while it runs: in the caller's buffers, or in one arena.

As csrc/runtime/plan.cc plans it for a context of the library, with pieces of `ALIGN` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparseinfer.export.c.records import COMPUTED, Records

__all__ = ["ALIGN", "Arena", "plan_arena"]

ALIGN = 8
"""Of what lies in the arena, and of the arena."""

IN_PLACE = ("add", "activation", "binary", "unary", "layer_norm", "lookup")
"""Operators that read each element before they write it."""


@dataclass(frozen=True)
class Arena:
    """The places of computed tensors, and how large the arena is.

    `outputs` has those in buffers of the caller's, and which; `offsets` those in the arena;
    `shared` are nodes whose output is the bytes of their operand.
    """

    size: int
    outputs: dict[int, int]
    offsets: dict[int, int]
    roots: dict[int, int]
    shared: frozenset[int]


@dataclass
class _Life:
    first: int
    last: int


def plan_arena(records: Records) -> Arena:
    """The places of a model's tensors: the largest first, each as low as none lives that is there.

    Example:
        >>> from sparseinfer.export.c.records import NodeRecord, TensorRecord
        >>> tensors = [TensorRecord("", "float32", k, (3,), 0.0, 0, b"") for k in (0, 2, 2, 2)]
        >>> nodes = [NodeRecord("", "softmax", "none", (k,), k + 1, (0,)) for k in range(3)]
        >>> plan = plan_arena(Records(tuple(tensors), tuple(nodes), (3,)))
        >>> plan.size, plan.offsets, plan.outputs
        (32, {1: 0, 2: 16}, {3: 0})
    """
    tensors, nodes = records.tensors, records.nodes
    roots = {number: number for number in range(len(tensors))}
    outputs = {number: which for which, number in enumerate(records.outputs)}
    lives = {node.output: _Life(at, at) for at, node in enumerate(nodes)}
    for at, node in enumerate(nodes):
        for number in node.operands:
            if number in lives:
                lives[number].last = at
    shared = []
    for at, node in enumerate(nodes):
        is_view = node.op == "reshape"
        if not is_view and node.op not in IN_PLACE:
            continue
        for number in node.operands:
            if number is None:
                continue
            root, y = roots[number], node.output
            in_arena = tensors[root].kind == COMPUTED and root not in outputs
            if tensors[root].type == "packed" or tensors[root].size != tensors[y].size:
                continue
            # Another output's bytes, or those of an input or a constant, cannot become this output.
            if y in outputs and not in_arena:
                continue
            dies = in_arena and lives[root].last == at
            if not is_view and (not dies or y in outputs):
                continue
            if y in outputs:
                outputs[root] = outputs[y]
            roots[y] = root
            if root in lives:
                lives[root].last = max(lives[root].last, lives[y].last)
            if is_view:
                shared.append(at)
            break
    own = [number for number in lives if roots[number] == number and number not in outputs]
    own.sort(key=lambda number: (-_size(records, number), number))
    placed: list[tuple[int, int]] = []
    for number in own:
        offset, size = 0, _size(records, number)
        for begin, other in sorted(placed):
            apart = (
                lives[other].last < lives[number].first or lives[number].last < lives[other].first
            )
            if apart:
                continue
            if begin >= offset + size:
                break
            offset = max(offset, begin + _size(records, other))
        placed.append((offset, number))
    offsets = {number: offset for offset, number in placed}
    total = max((offset + _size(records, number) for offset, number in placed), default=0)
    return Arena(total, outputs, offsets, roots, frozenset(shared))


def _size(records: Records, number: int) -> int:
    return -(-records.tensors[number].size // ALIGN) * ALIGN
