"""The comparisons behind a conversion: measured once on a kind of machine, then kept in files.

A file holds one comparison: `machine`, `conditions` and `problem` say what was measured where and
under which switches of the process, `comparison` holds the medians, the interval and the rounds, so
that any `min_speedup` can be decided from it. Its name is a hash of those three. One that is in
doubt is never written. Files appear whole (`sparseinfer.files`), so several processes may
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
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sparseinfer import native
from sparseinfer.codec import from_data, parse_file, to_text
from sparseinfer.files import write_text
from sparseinfer.timing import machine
from sparseinfer.timing.clock import Clock, Watch
from sparseinfer.timing.conditions import conditions
from sparseinfer.timing.measure import Comparison, compare, nothing

__all__ = ["Cache", "ProblemKey", "Tuner", "cache_folder", "describe_machine", "read_text"]

_log = logging.getLogger(__name__)

_TRITON_KERNELS = Path(__file__).parents[1] / "kernels" / "triton"

VERSION = 2
"""Of the files; others are ignored. The first had no conditions."""

MOST_BYTES = 65536
"""Length of a file that is still read: those written here have about two thousand bytes."""

ATTEMPTS = 2
"""Times that a comparison is measured whose result is in doubt."""

MOST_MS = 1e9
MOST_ROUNDS = 1_000_000

ProblemKey = Mapping[str, Any]
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
        >>> Cache(Path("nowhere")).read({}, {"label": "none"}, {}) is None
        True
    """

    folder: Path
    _writable: bool = True

    def path(
        self, machine: Mapping[str, Any], problem: ProblemKey, conditions: Mapping[str, Any]
    ) -> Path:
        """The file of a comparison."""
        label = re.sub(r"[^A-Za-z0-9.]+", "-", str(problem["label"]))[:60].strip("-.")
        return self.folder / f"{label}-{_digest(_key(machine, problem, conditions))}.json"

    def read(
        self, machine: Mapping[str, Any], problem: ProblemKey, conditions: Mapping[str, Any]
    ) -> Comparison | None:
        """The comparison that was kept for this problem on such a machine under equal conditions.

        None where there is none.
        """
        path = self.path(machine, problem, conditions)
        try:
            return _parse(read_text(path), _key(machine, problem, conditions))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("ignored %s: %s; it will be written anew", path, error)
            return None

    def write(
        self, machine: Mapping[str, Any], problem: ProblemKey, conditions: Mapping[str, Any],
        comparison: Comparison,
    ) -> None:  # fmt: skip
        """Keep a comparison, in place of any other of the same key."""
        if not self._writable:
            return
        path = self.path(machine, problem, conditions)
        entry = {
            "sparseinfer": VERSION, **_key(machine, problem, conditions),
            "comparison": asdict(comparison),
        }  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, to_text(entry))
        except OSError as error:
            self._writable = False
            _log.warning("keeps no timings in %s: %s; try cache=False", self.folder, error)


@dataclass
class _Entry:
    """A comparison of this conversion; `fresh` tells that it was measured now."""

    problem: ProblemKey
    conditions: Mapping[str, Any]
    comparison: Comparison
    lasts: bool
    fresh: bool


@dataclass
class Tuner:
    """The comparisons of one conversion: kept ones where there are, measured ones where not.

    `threshold` is what they have to decide. `deadline` is a time of `clock.wall()`. `others` are
    the devices beside `device` that the model runs on. `measured` and `kept` count what came from
    either source, and `doubted` those of the measured that are in doubt. `watch` adds up what of
    the time others had the processor. Files are written by `flush`, when all comparisons have been
    held against each other.
    """

    threads: int
    device: torch.device
    threshold: float
    deadline: float = math.inf
    cache: Cache | None = None
    measured: int = 0
    kept: int = 0
    others: Collection[torch.device] = ()
    clock: Clock = field(default_factory=Clock)
    watch: Watch = field(init=False)
    _known: dict[str, _Entry] = field(default_factory=dict)
    _distrusted: list[ProblemKey] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = Watch(self.clock)

    @property
    def machine(self) -> dict[str, Any]:
        """What the comparisons hold for, beside the conditions."""
        return {**describe_machine(str(self.device)), "threads": self.threads}

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - self.clock.wall()

    @property
    def doubted(self) -> int:
        """How many comparisons of this conversion are in doubt."""
        return sum(bool(entry.comparison.doubt) for entry in self._known.values())

    def recall(self, problem: ProblemKey, threshold: float | None = None) -> Comparison | None:
        """The comparison of this problem from this conversion or the cache, None where none is.

        One that was made under other conditions than those of now is none, nor is one that ended
        early and cannot decide the threshold of now.
        """
        now = conditions()
        key = _digest(_key({}, problem, now))
        entry = self._known.get(key)
        if entry is not None:
            return entry.comparison
        if self.cache is None or problem in self._distrusted:
            return None
        found = self.cache.read(self.machine, problem, now)
        if found is None or not found.decides(self.threshold if threshold is None else threshold):
            return None
        self.kept += 1
        self._known[key] = _Entry(problem, now, found, lasts=True, fresh=False)
        _log.debug("kept: %s: %s", problem["label"], found)
        return found

    def keep(
        self, problem: ProblemKey, comparison: Comparison, threshold: float | None = None
    ) -> None:
        """Remember a comparison that was measured now; `flush` writes it, if it is any good."""
        self.measured += 1
        _log.debug("measured: %s: %s", problem["label"], comparison)
        now = conditions()
        lasts = comparison.lasts(self.threshold if threshold is None else threshold)
        self._known[_digest(_key({}, problem, now))] = _Entry(problem, now, comparison, lasts, True)

    def doubt(self, problem: ProblemKey, why: str) -> None:
        """Note that the comparison of this problem is not to be believed: it is not written."""
        for entry in self._known.values():
            if entry.problem == problem and not entry.comparison.doubt:
                entry.comparison = replace(entry.comparison, doubt=why)

    def forget(self, problem: ProblemKey) -> None:
        """Have this problem measured anew the next time, whatever the cache has."""
        self._distrusted.append(problem)
        self._known = {key: entry for key, entry in self._known.items() if entry.problem != problem}

    def flush(self) -> None:
        """Write what was measured in this conversion and is worth keeping."""
        for entry in self._known.values():
            good = entry.fresh and entry.lasts and not entry.comparison.doubt
            if good and self.cache is not None:
                self.cache.write(self.machine, entry.problem, entry.conditions, entry.comparison)
            entry.fresh = False

    def compare(
        self,
        problem: ProblemKey,
        make: Callable[[], Calls],
        budget_s: float,
        threshold: float | None = None,
        ready: tuple[Callable[[], None], Callable[[], None]] = (nothing, nothing),
        sample: Callable[[Callable[[], object], int], float] | None = None,
        implausible: Callable[[Comparison], str] = lambda found: "",
    ) -> Comparison:
        """Recall the comparison of this problem, or measure it: `make` gives the two calls then.

        `implausible` tells why a comparison is hard to believe, and nothing where it is not. One in
        doubt is measured again, while there is time, and the one with the less to be gained counts.
        """
        found = self.recall(problem, threshold)
        if found is not None:
            if found.doubt or not implausible(found):
                return found
            self.kept -= 1
        dense, sparse = make()
        tries: list[Comparison] = []
        while not tries or (tries[-1].doubt and len(tries) < ATTEMPTS and self.left_s > 0):
            found = compare(
                dense,
                sparse,
                budget_s=budget_s,
                threshold=self.threshold if threshold is None else threshold,
                synchronize=self.synchronize,
                ready=ready,
                sample=sample,
                clock=self.clock,
                # A device that runs behind Python leaves the thread to wait, and others to run.
                watch=self.watch if self.device.type == "cpu" else None,
                alone=self.threads == 1 and self.device.type == "cpu",
            )
            tries.append(replace(found, doubt=found.doubt or implausible(found)))
        found = tries[-1] if not tries[-1].doubt else min(tries, key=lambda one: one.low)
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
    target = machine.target_facts(machine.HOST)
    found: dict[str, Any] = {
        "processor": platform.machine(),
        "cpu": machine.cpu_model(),
        "features": machine.cpu_features(),
        "caches": machine.cache_sizes(),
        "isa": machine.selected_isa(),
        "kernels": native.source_hash(),
        "target": {fact: target[fact] for fact in ("name", "features", "l1", "l2")},
        "threads_backend": native.threads_backend(),
        "sparseinfer": native.version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
    }
    if device.split(":")[0] == "cuda":
        sources = sorted(_TRITON_KERNELS.glob("*.py"))
        found["gpu"] = torch.cuda.get_device_name(device)
        found["capability"] = list(torch.cuda.get_device_capability(device))
        found["cuda"] = torch.version.cuda
        found["triton_kernels"] = hashlib.sha256(
            b"".join(source.read_bytes() for source in sources)
        ).hexdigest()[:16]
    return found


def _key(
    machine: Mapping[str, Any], problem: ProblemKey, conditions: Mapping[str, Any]
) -> dict[str, Any]:
    return {"machine": dict(machine), "conditions": dict(conditions), "problem": dict(problem)}


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
    entry = parse_file(text, "sparseinfer", VERSION)
    # Through JSON and back, as tuples become lists.
    if {name: entry.get(name) for name in key} != json.loads(json.dumps(key)):
        raise ValueError("expected the machine, conditions and problem that its name says")
    found = from_data(Comparison, entry.get("comparison"))
    times = (found.dense_ms, found.sparse_ms, found.speedup, found.low, found.high)
    if not all(0 < value < MOST_MS for value in times):
        raise ValueError("expected positive numbers")
    if not found.low <= found.speedup <= found.high:
        raise ValueError("expected low <= speedup <= high")
    if not 1 <= found.rounds <= MOST_ROUNDS:
        raise ValueError("expected a count of rounds")
    if found.doubt:
        raise ValueError("expected a comparison that is not in doubt")
    return found
