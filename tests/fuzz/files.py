"""Feeds damaged files to everything that reads one: `python -m tests.fuzz.files --seconds 60`.

Each input follows from its seed. A reader may refuse a file with the exceptions that it documents,
in one line; anything else (another exception, a crash, a hang, memory out of all proportion) is a
failure, which is printed with the seed that `--seed N --count 1` runs again.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

MOST_MEGABYTES = 300
"""What reading files of a few kilobytes may add to the memory of the process."""

MOST_SECONDS = 60
"""After so long a reader is taken to hang."""


def readers() -> dict[str, tuple[Callable[[Path], object], tuple[type[Exception], ...]]]:
    """Every reader of files, and what it may raise."""
    from sparseinfer import load_converted, load_sparse, load_sparse_into
    from sparseinfer.checkpoints import CheckpointError, Recipe, prune_checkpoint
    from sparseinfer.checkpoints.facts import inspect_checkpoint
    from sparseinfer.checkpoints.sensitivity import scan_checkpoint
    from tests.fuzz.corpus import model

    refusal = (CheckpointError,)
    # RuntimeError: load_state_dict lists what does not fit the model. TypeError: no state_dict.
    of_a_model = (CheckpointError, RuntimeError, TypeError)
    return {
        "load_sparse": (load_sparse, refusal),
        "inspect": (lambda path: inspect_checkpoint(path).to_dict(), refusal),
        "prune": (lambda path: prune_checkpoint(path, Recipe(amount=0.5)), refusal),
        "sensitivity": (scan_checkpoint, refusal),
        "load_sparse_into": (lambda path: load_sparse_into(model(), path), refusal),
        "load_converted": (lambda path: load_converted(model(), path, strict=False), of_a_model),
    }


def feed(seed: int, corpus: dict[str, bytes], folder: Path) -> list[str]:
    """Read the file of a seed with every reader; say what went wrong."""
    from sparseinfer.checkpoints import CheckpointError
    from tests.fuzz.corpus import damage

    draw = random.Random(seed)
    name = draw.choice(sorted(corpus))
    path = folder / name
    path.write_bytes(damage(corpus[name], name, corpus, draw))
    if name.endswith(".index.json"):
        (folder / "one.safetensors").write_bytes(corpus["plain.safetensors"])
        (folder / "two.pth").write_bytes(corpus["state.pth"])
    failures = []
    for reader, (read, allowed) in readers().items():
        try:
            read(path)
        except allowed as error:
            if isinstance(error, CheckpointError) and "\n" in str(error):
                failures.append(f"{reader}: {name}: more than one line: {error!r}")
        # Whatever else it is, it is a finding.
        except Exception as error:
            failures.append(f"{reader}: {name}: {type(error).__name__}: {error}")
    path.unlink()
    return failures


def work(first: int, count: int, seconds: float, mark: int) -> int:
    """Feed inputs until a bound is met; the seed that is at work is written to the file `mark`."""
    from tests.fuzz.corpus import make_corpus

    faulthandler.enable()
    warnings.simplefilter("ignore")
    until = time.monotonic() + seconds
    seeds = itertools.count(first) if count == 0 else range(first, first + count)
    done = failed = 0
    with tempfile.TemporaryDirectory() as name:
        corpus = make_corpus(Path(name))
        base = _megabytes()
        for seed in seeds:
            if time.monotonic() > until:
                break
            os.pwrite(mark, f"{seed:<20}".encode(), 0)
            signal.alarm(MOST_SECONDS)
            failures = feed(seed, corpus, Path(name))
            signal.alarm(0)
            if _megabytes() - base > MOST_MEGABYTES:
                failures.append(f"memory grew by {_megabytes() - base} MB")
                base = _megabytes()
            for failure in failures:
                print(f"FAIL seed {seed}: {failure}", flush=True)
            failed += bool(failures)
            done += 1
    print(f"{done} damaged files, {failed} failures, seeds from {first}")
    return min(failed, 1)


def _megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="the first one; default: random")
    parser.add_argument("--count", type=int, default=0, help="inputs at most; 0: until the time")
    parser.add_argument("--mark", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    first = secrets.randbelow(2**31) if options.seed is None else options.seed
    if options.mark is not None:
        return work(first, options.count, options.seconds, options.mark)
    # In a process of its own, so that a crash is told with its seed, too.
    with tempfile.TemporaryFile() as mark:
        arguments = ["--seconds", options.seconds, "--seed", first, "--count", options.count]
        arguments += ["--mark", mark.fileno()]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.files", *map(str, arguments)],
            pass_fds=[mark.fileno()],
            check=False,
        )
        if done.returncode < 0:
            mark.seek(0)
            name = signal.Signals(-done.returncode).name
            print(f"FAIL seed {mark.read().decode().strip()}: killed by {name}")
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
