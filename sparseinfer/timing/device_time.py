"""Times calls on a CUDA device: weights rotated past its cache, events, and CUDA graphs.

A layer's weight comes from memory in a model, where other layers ran since. Called again and again
on one weight, a layer is timed on the cache instead: 50 MB of it on an H100 hold a 4096 x 4096
bfloat16 matrix. So the calls go round copies that exceed the cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch

from sparseinfer.timing.rounds import Rotation

__all__ = ["EventTimer", "GraphTimer", "cache_bytes", "capture", "copies_for"]

UNKNOWN_CACHE_BYTES = 128 << 20
"""Where torch does not tell: no cache of a GPU until 2025 is larger."""

PAST_CACHE = 2
"""Times the cache that the copies exceed."""

MOST_COPIES = 128
"""Of small weights: those that this many copies do not take past the cache are timed partly on it,
both sides alike."""


def cache_bytes(device: torch.device) -> int:
    """The size of the device's last cache.

    Example:
        >>> cache_bytes(torch.device("cpu")) == UNKNOWN_CACHE_BYTES
        True
    """
    if device.type != "cuda":
        return UNKNOWN_CACHE_BYTES
    found: int = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return found or UNKNOWN_CACHE_BYTES


def copies_for(weight_bytes: int, cache: int) -> int:
    """How many copies of a weight exceed `PAST_CACHE` times a cache of `cache` bytes.

    Example:
        >>> copies_for(32 << 20, 50 << 20), copies_for(256 << 20, 50 << 20)
        (4, 1)
    """
    return min(MOST_COPIES, PAST_CACHE * cache // max(1, weight_bytes) + 1)


class EventTimer:
    """Times calls as an eager model makes them: launches count where the device waits for them."""

    name = "events"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of one of `repeats` calls, between two events of the current stream."""
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats


class GraphTimer(EventTimer):
    """Times what the device does alone: every round of a rotation is one replay of a CUDA graph."""

    name = "graph"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._replays: weakref.WeakKeyDictionary[Rotation, Callable[[], object]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of one call; a rotation is replayed whole, other callables as they are."""
        if not isinstance(call, Rotation):
            return super().__call__(call, repeats)
        if call not in self._replays:
            self._replays[call] = capture(_run_all(call.calls), self.device)
        return super().__call__(self._replays[call], repeats) / len(call.calls)


def _run_all(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    def run() -> None:
        for call in calls:
            call()

    return run


def capture(call: Callable[[], object], device: torch.device) -> Callable[..., object]:
    """The replay of a CUDA graph of `call`, which must have its shapes and memory fixed.

    It runs three times first, on a stream of its own, as torch asks for: kernels are compiled, and
    workspaces and the choice of kernel rows are made then.

    Raises:
        RuntimeError: the call does what a graph cannot hold, such as waiting for the device.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = call()

    def replay(*_: object, **__: object) -> object:
        graph.replay()
        return held  # the output's memory belongs to the graph

    return replay
