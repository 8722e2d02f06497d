"""The workers of one number of threads: started when first needed, again after a crash."""

from __future__ import annotations

from collections.abc import Callable
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

    def worker_of(self, peer: Peer) -> _Watched:
        """Return the peer's worker, started where none is running.

        Raises:
            PeerError: the peer is not installed, does not start, or crashed too often.
        """
        worker = self._workers.get(peer.name)
        if worker is not None:
            return worker
        crashes = self._crashes.setdefault(peer.name, [])
        if len(crashes) >= MOST_CRASHES:
            raise PeerError(f"given up after {len(crashes)} crashes, the last: {crashes[-1]}")
        command = self._command_of(peer, self._threads, self._cache)

        def gone(error: PeerCrashError) -> None:
            crashes.append(str(error))
            self._workers.pop(peer.name, None)

        try:
            started = Worker(command, worker_environment(self._threads), self._timeout)
        except PeerCrashError as error:
            gone(error)
            raise
        self.versions[peer.name] = str(started.hello["version"])
        self._workers[peer.name] = _Watched(started, gone)
        return self._workers[peer.name]

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
