"""A worker process seen from the parent: start, ask, stop, and what it said when it died."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

STOP_SECONDS = 5.0
START_SECONDS = 120.0

# Each engine is told its number of threads by its own interface; these reach the libraries below.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class PeerError(Exception):
    """A peer did not do what it was asked; the message says why."""


class PeerCrashError(PeerError):
    """The peer's process is gone."""


def worker_command(python: Path, module: str, name: str, threads: int) -> list[str]:
    """Return the command that serves the engine ``module.name`` by the interpreter ``python``."""
    return [str(python), "-m", "benchmarks.peers.worker", module, name, str(threads)]


def worker_environment(threads: int) -> dict[str, str]:
    """Return the variables that a worker starts with."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    environment["PYTHONPATH"] = str(ROOT)
    return environment


class Worker:
    """A process that answers one JSON line with one JSON line.

    Args:
        command: what to start.
        environment: its variables.
        timeout: seconds that it may take for an answer.

    Raises:
        PeerCrashError: it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> None:
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()
        try:
            # A session of its own: Ctrl-C reaches the parent alone, which then ends the workers.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env=dict(environment), cwd=ROOT, text=True, encoding="utf-8",
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise PeerCrashError(f"cannot be started: {error.strerror}") from error
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def greet(self) -> dict[str, Any]:
        """Wait for what the process says first, once it is ready.

        Raises:
            PeerCrashError: it ended instead.
        """
        return self._answer(START_SECONDS)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _answer(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self._end(patience=0.0)
            self._errors.close()
            raise PeerCrashError(f"no answer in {timeout:g} s") from None
        if not line:
            raise PeerCrashError(self._last_words())
        try:
            reply = json.loads(line)
        except ValueError:
            self._end(patience=0.0)
            self._errors.close()
            raise PeerCrashError(f"expected an answer in JSON, got {line.strip()[:60]!r}") from None
        if "unsupported" in reply:
            raise PeerError(reply["unsupported"])
        if "error" in reply:
            raise PeerError(reply["error"])
        return dict(reply)

    def _last_words(self) -> str:
        self._end(STOP_SECONDS)
        code = self._process.returncode
        ending = f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self._errors.close()
        return f"{ending}: {lines[-1].strip()}" if lines else ending

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            PeerError: the peer refuses, or its engine failed.
            PeerCrashError: the process ended, or took longer than the timeout and was ended.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except OSError:
            raise PeerCrashError(self._last_words()) from None
        return self._answer(self._timeout)

    def _end(self, patience: float) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass  # It closed its end first.
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            # The whole session: what it started holds its output open.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(STOP_SECONDS)

    def close(self) -> None:
        """End the process: by the end of its requests, or by force where it does not heed it."""
        self._end(STOP_SECONDS)
        self._errors.close()


def own_python() -> Path:
    """Return the running interpreter, as it was called: a link tells it its environment."""
    return Path(sys.executable)
