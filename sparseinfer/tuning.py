"""The comparisons behind a conversion: measured once on a kind of machine, then kept in files.

A file holds one comparison: `machine` and `problem` say what was measured where, `comparison` holds
the medians, the interval and the rounds, so that any `min_speedup` can be decided from it. Its name
is a hash of machine and problem; files appear whole (`sparseinfer.files`), so several processes may
share a folder. The folder is `$SPARSEINFER_CACHE` (`off`: none), else
`$XDG_CACHE_HOME/sparseinfer`, else `~/.cache/sparseinfer`; it may be deleted, or copied to
identical machines, at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import stat
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sparseinfer import _C, machine, triton
from sparseinfer.files import write_text
from sparseinfer.measure import Comparison, compare, nothing

__all__ = ["Cache", "Problem", "Tuner", "cache_folder", "describe_machine", "read_text"]

_log = logging.getLogger(__name__)

VERSION = 1
"""Of the files; others are ignored."""

MOST_BYTES = 65536
"""Length of a file that is still read: those written here have about two thousand bytes."""

MOST_MS = 1e9
MOST_ROUNDS = 1_000_000

Problem = Mapping[str, Any]
"""What is compared, as JSON has it. `label` begins the file's name; it says nothing else."""

Calls = tuple[Callable[[], object], Callable[[], object]]


def cache_folder(choice: bool | str | os.PathLike[str] = True) -> Path | None:
    """The folder that comparisons are kept in, None for none: as `choice` says, or the environment.

    Example:
        >>> cache_folder(False) is None, cache_folder("tuned").name
        (True, 'tuned')
    """
    if choice is False:
        return None
    if choice is not True:
        return Path(choice)
    named = os.environ.get("SPARSEINFER_CACHE", "")
    if named:
        return None if named == "off" else Path(named)
    # The XDG rule: a relative path is invalid and is ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "sparseinfer"
    try:
        return Path.home() / ".cache" / "sparseinfer"
    except RuntimeError:  # the user has no home
        return None


@dataclass
class Cache:
    """A folder of kept comparisons.

    Whatever its files hold, reading one gives a comparison of plausible numbers or None. A folder
    that cannot be written keeps nothing, which is logged once.

    Example:
        >>> Cache(Path("nowhere")).read({}, {"label": "none"}) is None
        True
    """

    folder: Path
    _writable: bool = True

    def path(self, machine: Mapping[str, Any], problem: Problem) -> Path:
        """The file of a comparison."""
        label = re.sub(r"[^A-Za-z0-9.]+", "-", str(problem["label"]))[:60].strip("-.")
        return self.folder / f"{label}-{_digest(_key(machine, problem))}.json"

    def read(self, machine: Mapping[str, Any], problem: Problem) -> Comparison | None:
        """The comparison that was kept for this problem on such a machine; None where none is."""
        path = self.path(machine, problem)
        try:
            return _parse(read_text(path), _key(machine, problem))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("ignored %s: %s; it will be written anew", path, error)
            return None

    def write(self, machine: Mapping[str, Any], problem: Problem, comparison: Comparison) -> None:
        """Keep a comparison, in place of any other for the same problem on such a machine."""
        if not self._writable:
            return
        path = self.path(machine, problem)
        entry = {
            "sparseinfer": VERSION, **_key(machine, problem), "comparison": asdict(comparison),
        }  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(entry, indent=1) + "\n")
        except OSError as error:
            self._writable = False
            _log.warning("keeps no timings in %s: %s; try cache=False", self.folder, error)


@dataclass
class Tuner:
    """The comparisons of one conversion: kept ones where there are, measured ones where not.

    `threshold` is what they have to decide. `deadline` is a time of `time.monotonic`. `others` are
    the devices beside `device` that the model runs on. `measured` and `kept` count what came from
    either source.
    """

    threads: int
    device: torch.device
    threshold: float
    deadline: float = math.inf
    cache: Cache | None = None
    measured: int = 0
    kept: int = 0
    others: Collection[torch.device] = ()
    _known: dict[str, Comparison] = field(default_factory=dict)

    @property
    def machine(self) -> dict[str, Any]:
        """What the comparisons hold for."""
        return {**describe_machine(str(self.device)), "threads": self.threads}

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def recall(self, problem: Problem, threshold: float | None = None) -> Comparison | None:
        """The comparison of this problem from this conversion or the cache, None where none is.

        One that ended early is None too where it cannot decide the threshold of now.
        """
        key = _digest(_key({}, problem))
        found = self._known.get(key)
        if found is None and self.cache is not None:
            found = self.cache.read(self.machine, problem)
            if found is not None:
                if not found.decides(self.threshold if threshold is None else threshold):
                    return None
                self.kept += 1
                self._known[key] = found
                _log.debug("kept: %s: %s", problem["label"], found)
        return found

    def keep(
        self, problem: Problem, comparison: Comparison, threshold: float | None = None
    ) -> None:
        """Remember a comparison that was measured now, in the cache only if it is any good."""
        self.measured += 1
        _log.debug("measured: %s: %s", problem["label"], comparison)
        self._known[_digest(_key({}, problem))] = comparison
        lasts = comparison.lasts(self.threshold if threshold is None else threshold)
        if self.cache is not None and lasts:
            self.cache.write(self.machine, problem, comparison)

    def compare(
        self,
        problem: Problem,
        make: Callable[[], Calls],
        budget_s: float,
        threshold: float | None = None,
        ready: tuple[Callable[[], None], Callable[[], None]] = (nothing, nothing),
        sample: Callable[[Callable[[], object], int], float] | None = None,
    ) -> Comparison:
        """Recall the comparison of this problem, or measure it: `make` gives the two calls then."""
        found = self.recall(problem, threshold)
        if found is None:
            dense, sparse = make()
            found = compare(
                dense,
                sparse,
                budget_s=budget_s,
                threshold=self.threshold if threshold is None else threshold,
                synchronize=self.synchronize,
                ready=ready,
                sample=sample,
            )
            self.keep(problem, found, threshold)
        return found

    def synchronize(self) -> None:
        """Wait for the devices that run behind Python."""
        for device in (self.device, *self.others):
            if device.type == "cuda":
                torch.cuda.synchronize(device)


@lru_cache(maxsize=16)
def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """What decides how fast both sides of a comparison run: processor, caches, kernels, torch.

    Example:
        >>> sorted(describe_machine())[:3]
        ['caches', 'cpu', 'features']
    """
    found: dict[str, Any] = {
        "processor": platform.machine(),
        "cpu": machine.cpu_model(),
        "features": machine.cpu_features(),
        "caches": machine.cache_sizes(),
        "isa": machine.selected_isa(),
        "kernels": _C.source_hash(),
        "threads_backend": _C.threads_backend(),
        "sparseinfer": _C.version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
    }
    if device.split(":")[0] == "cuda":
        sources = sorted(Path(triton.__file__).parent.glob("*.py"))
        found["gpu"] = torch.cuda.get_device_name(device)
        found["capability"] = list(torch.cuda.get_device_capability(device))
        found["cuda"] = torch.version.cuda
        found["triton_kernels"] = hashlib.sha256(
            b"".join(source.read_bytes() for source in sources)
        ).hexdigest()[:16]
    return found


def _key(machine: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    return {"machine": dict(machine), "problem": dict(problem)}


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def read_text(path: Path) -> str:
    """The text of a small file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, longer than `MOST_BYTES`, or not UTF-8.
    """
    with open(path, "rb", opener=_open_now) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("expected a file, got something else")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got more")
    return content.decode("utf-8")


def _open_now(path: str, flags: int) -> int:
    """Open without waiting for the other end of what turns out to be a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _parse(text: str, key: Mapping[str, Any]) -> Comparison:
    """The comparison in a file's text.

    Raises:
        ValueError: it is not JSON, was made for something else, or its numbers make no sense.
    """
    entry = json.loads(text)
    if not isinstance(entry, dict) or entry.get("sparseinfer") != VERSION:
        raise ValueError(f"expected an entry of version {VERSION}")
    # Through JSON and back, as tuples become lists.
    if {name: entry.get(name) for name in key} != json.loads(json.dumps(key)):
        raise ValueError("expected the machine and the problem that its name says")
    numbers = entry.get("comparison")
    names = Comparison.__dataclass_fields__.keys()
    if not isinstance(numbers, dict) or numbers.keys() != names:
        raise ValueError(f"expected a comparison of {', '.join(names)}")
    times = [numbers[name] for name in ("dense_ms", "sparse_ms", "speedup", "low", "high")]
    if not all(type(value) in (int, float) and 0 < value < MOST_MS for value in times):
        raise ValueError("expected positive numbers")
    if not numbers["low"] <= numbers["speedup"] <= numbers["high"]:
        raise ValueError("expected low <= speedup <= high")
    if type(numbers["rounds"]) is not int or not 1 <= numbers["rounds"] <= MOST_ROUNDS:
        raise ValueError("expected a count of rounds")
    if type(numbers["early"]) is not bool:
        raise ValueError("expected early to be true or false")
    return Comparison(**numbers)
