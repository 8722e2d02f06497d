"""Why a layer stays dense, in words: the overhead of its calls, and the memory it could save."""

from __future__ import annotations

from collections.abc import Sequence

from sparseinfer.convert.layer_report import Candidate
from sparseinfer.convert.scan import Layer
from sparseinfer.kernels.dispatch import kept_bytes

__all__ = ["COMPUTE_BOUND", "memory_choice", "overhead_reason"]

COMPUTE_BOUND = 256
"""N from which on a GPU's arithmetic, and no longer the weight's memory, takes the time."""


def overhead_reason(
    candidate: Candidate, calls: float, dense_ms: float, sparse_ms: float, asked: float
) -> str:
    """What to say where without the overhead of its calls a layer would gain what was `asked`.

    `dense_ms` and `sparse_ms` are the times of a call that computes next to nothing.
    """
    assert candidate.dense_ms is not None and candidate.sparse_ms is not None
    overhead = calls * (sparse_ms - dense_ms)
    bare = candidate.sparse_ms - overhead
    if overhead <= 0 or (bare > 0 and candidate.dense_ms / bare < asked):
        return ""
    text = f"the call's overhead, {1e3 * overhead:.2g} us more than a dense one's,"
    if bare <= 0:
        return f"{text} exceeds the gain"
    gain = candidate.dense_ms - bare
    relation = "exceeds" if overhead > gain else "leaves too little of"
    return f"{text} {relation} the {1e3 * gain:.2g} us that the kernel gains"


def memory_choice(layer: Layer, candidate: Candidate, tokens: Sequence[int]) -> str:
    """What a layer that stays dense could have been packed for; empty where it is not smaller."""
    packed = (candidate.packed_bytes or 0) + kept_bytes(
        candidate.format, layer.numel, layer.nnz, layer.dtype, max(tokens, default=0)
    )
    share = packed / (layer.numel * layer.dtype.itemsize)
    if not 0 < share < 1:
        return ""
    dense = ""
    if tokens and max(tokens) >= COMPUTE_BOUND:
        dense = f"; at N = {max(tokens)} dense tensor cores are hard to beat"
    return (
        f"{dense}; as {candidate.format} it would take {share:.0%} of the memory: "
        f"formats={[candidate.format]!r} with min_speedup=0 converts it for that"
    )
