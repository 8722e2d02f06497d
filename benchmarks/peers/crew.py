"""The workers of one number of threads: started when first needed, again after a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.environments import python_of
from benchmarks.peers.process import (
    PeerCrashError,
    PeerError,
    Worker,
    worker_command,
    worker_environment,
)

TIMEOUT = 300.0
"""Seconds that a worker may take for an answer; compiling many copies takes the longest."""

MOST_CRASHES = 3
"""A peer that crashed this often is not started again."""


class _Watched:
    """A worker that tells its crew when it is gone."""

    def __init__(self, worker: Worker, gone: Callable[[PeerCrashError], None]) -> None:
        self._worker = worker
        self._gone = gone
        self.version: str | None = None
        """None until it said hello."""

    def greet(self) -> None:
        try:
            self.version = str(self._worker.greet()["version"])
        except PeerCrashError as error:
            self._gone(error)
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        try:
            return self._worker.ask(**request)
        except PeerCrashError as error:
            self._gone(error)
            raise

    def close(self) -> None:
        self._worker.close()


class Crew:
    """Gives each peer its worker.

    Args:
        threads: threads of every peer.
        cache: folder of the peers' environments.
        command_of: the command that starts a peer's worker; raises PeerError where there is none.
        timeout: seconds that a worker may take for an answer.

    Used as a context manager: at its end the workers are ended.
    """

    def __init__(
        self,
        threads: int,
        cache: Path,
        command_of: Callable[[Peer, int, Path], list[str]] | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._threads = threads
        self._cache = cache
        self._command_of = command_of or installed_command
        self._timeout = timeout
        self._workers: dict[str, _Watched] = {}
        self._crashes: dict[str, list[str]] = {}
        self.versions: dict[str, str] = {}

    def _start(self, peer: Peer) -> None:
        command = self._command_of(peer, self._threads, self._cache)
        worker = Worker(command, worker_environment(self._threads), self._timeout)

        def gone(error: PeerCrashError) -> None:
            self._crashes.setdefault(peer.name, []).append(str(error))
            self._workers.pop(peer.name, None)

        self._workers[peer.name] = _Watched(worker, gone)

    def start(self, peers: Sequence[Peer]) -> None:
        """Start the peers' workers side by side: most of a start is imports.

        One that cannot be started says why when it is asked for.
        """
        for peer in peers:
            with contextlib.suppress(PeerError):
                self._start(peer)

    def worker_of(self, peer: Peer) -> _Watched:
        """Return the peer's worker, ready, started where none is running.

        Raises:
            PeerError: the peer is not installed, does not start, or crashed too often.
        """
        crashes = self._crashes.get(peer.name, [])
        if len(crashes) >= MOST_CRASHES:
            raise PeerError(f"given up after {len(crashes)} crashes, the last: {crashes[-1]}")
        if peer.name not in self._workers:
            self._start(peer)
        worker = self._workers[peer.name]
        if worker.version is None:
            worker.greet()
            self.versions[peer.name] = str(worker.version)
        return worker

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


def installed_command(peer: Peer, threads: int, cache: Path) -> list[str]:
    """Return the command that starts a peer's worker in its environment.

    Raises:
        PeerError: the environment has not been made.
    """
    return worker_command(python_of(peer, cache), peer.module, peer.engine, threads)
