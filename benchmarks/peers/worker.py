"""The process of one peer: ``python -m benchmarks.peers.worker MODULE CLASS THREADS``.

Reads a JSON object a line and answers each with one, on what were its standard input and output.
Runs in the peer's own environment, so that it needs nothing but NumPy and that peer.

    {"do": "prepare", "arrays": FOLDER, "result": FILE, "op": ..., "stride": ..., "padding": ...,
     "cold_bytes": ...}
        builds the layer, runs it once, writes y, and answers with threads, precision, copies and
        the seconds that a call takes about
    {"do": "time", "inner": ..., "samples": ..., "warm": SECONDS}
        takes a turn, and answers with the median and the minimum in seconds a call
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.peers.engines.interface import Engine, Layer, UnsupportedError

QUIET_STEP = 2e-3
QUIET_SHARE = 0.1
QUIET_LIMIT = 0.25
"""A turn ends once the process used a tenth of a core in 2 ms, or after 0.25 s: until then its
threads may be spinning, and would do so on the next peer's time."""

ESTIMATES = 3
ESTIMATE_LIMIT = 0.1
"""Calls that estimate a call's time: several, until they have taken 0.1 s together."""


def wait_until_quiet() -> bool:
    """Wait for the process's threads to go to sleep; return whether they did."""
    end = time.perf_counter() + QUIET_LIMIT
    while time.perf_counter() < end:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(QUIET_STEP)
        if time.process_time() - used < QUIET_SHARE * (time.perf_counter() - start):
            return True
    return False


def take_turn(
    calls: Iterator[Callable[[], object]], inner: int, samples: int, warm: float
) -> dict[str, Any]:
    """Call for ``warm`` seconds, then time ``samples`` times ``inner`` calls."""
    start = time.perf_counter()
    while time.perf_counter() - start < warm:
        next(calls)()
    seconds = []
    used, begin = time.process_time(), time.perf_counter()
    for _ in range(samples):
        todo = tuple(itertools.islice(calls, inner))
        start = time.perf_counter()
        for call in todo:
            call()
        seconds.append((time.perf_counter() - start) / inner)
    wall = time.perf_counter() - begin
    return {
        "median": statistics.median(seconds),
        "minimum": min(seconds),
        "cores": (time.process_time() - used) / wall,
    }


class Server:
    """Answers requests with one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: tuple[object, ...] = ()
        self._calls: Iterator[Callable[[], object]] = iter(())

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build a layer, write its result, and estimate its time."""
        # The layer before goes first: two of the largest need not fit in memory.
        self._calls, self._held = iter(()), ()
        gc.collect()
        layer = Layer.load(Path(request["arrays"]), request)
        prepared = self._engine.prepare(layer)
        # Engines are given the addresses of x and y, which keep no array alive.
        self._held = (layer, prepared)
        np.save(request["result"], prepared.result(), allow_pickle=False)
        for call in prepared.calls:
            call()
        seconds: list[float] = []
        self._calls = itertools.cycle(prepared.calls)
        while len(seconds) < ESTIMATES and sum(seconds) < ESTIMATE_LIMIT:
            start = time.perf_counter()
            next(self._calls)()
            seconds.append(time.perf_counter() - start)
        return {
            "threads": prepared.threads,
            "precision": prepared.precision,
            "copies": len(prepared.calls),
            "seconds": min(seconds),
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks; an engine's error is an answer, not the end."""
        try:
            if request["do"] == "prepare":
                reply = self.prepare(request)
            else:
                reply = take_turn(
                    self._calls, request["inner"], request["samples"], request["warm"]
                )
        except UnsupportedError as error:
            return {"unsupported": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {**reply, "quiet": wait_until_quiet()}


def serve(server: Server, requests: TextIO, replies: TextIO, hello: dict[str, Any]) -> None:
    """Say hello, then answer until the requests end."""
    print(json.dumps(hello), file=replies, flush=True)
    # The collector would run on somebody's time. What was imported it need not look at again.
    gc.disable()
    gc.freeze()
    for line in requests:
        print(json.dumps(server.answer(json.loads(line))), file=replies, flush=True)


def main() -> None:
    """Load the engine that the command line names and serve it."""
    module, name, threads = sys.argv[1:]
    # Libraries print to standard output: from here on that goes where errors go.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    engine: Engine = getattr(importlib.import_module(module), name)(int(threads))
    serve(Server(engine), sys.stdin, replies, {"version": engine.version()})


if __name__ == "__main__":
    main()
