"""The process of one engine: ``python -m benchmarks.networks.worker MODULE CLASS THREADS``.

As benchmarks.peers.worker, with a whole network instead of a layer:

    {"do": "prepare", "folder": FOLDER, "network": NAME, "result": FILE}
        loads the network, runs it once and writes y
    {"do": "time", ...}
        takes a turn
"""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.worker import ESTIMATE_LIMIT, ESTIMATES, Server, serve


@dataclass(frozen=True)
class ReadyNetwork:
    """What is timed, what it gives, and with how many threads; `held` lives as long."""

    call: Callable[[], object]
    result: Callable[[], Any]
    threads: int
    held: tuple[object, ...] = ()


class NetworkServer(Server):
    """Answers requests with one engine."""

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load a network, write its result, and estimate its time."""
        self._calls, self._held = iter(()), ()
        gc.collect()
        engine: Any = self._engine
        ready = engine.prepare(Path(request["folder"]), request["network"])
        self._held = (ready,)
        np.save(request["result"], ready.result(), allow_pickle=False)
        seconds: list[float] = []
        while len(seconds) < ESTIMATES and sum(seconds) < ESTIMATE_LIMIT:
            start = time.perf_counter()
            ready.call()
            seconds.append(time.perf_counter() - start)
        self._calls = itertools.cycle([ready.call])
        return {"threads": ready.threads, "seconds": min(seconds)}


def main() -> None:
    """Load the engine that the command line names and serve it."""
    module, name, threads = sys.argv[1:]
    # Libraries print to standard output: from here on that goes where errors go.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    engine = getattr(importlib.import_module(module), name)(int(threads))
    serve(NetworkServer(engine), sys.stdin, replies, {"version": engine.version()})


if __name__ == "__main__":
    main()
