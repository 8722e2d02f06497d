"""Random small networks over all operators: the engine computes what torch does, or where it parts.

`RANDOM_GRAPHS_SEED=N pytest tests/test_random_graphs.py -k one` repeats a finding.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch
from random_graphs import IDS, random_network

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import load_engine
from sparseinfer.export.file import OPERATORS

QUICK, SLOW = 4, 60.0
"""Networks in the quick tests; seconds of the slow one."""

BYTES = {"quantize", "dequantize", "lookup"}
"""Operators that only networks of int8 have, which `test_int8_networks.py` compares."""


def check(seed: int, folder: Path) -> set[str]:
    """Compile, compare node by node, save and load one network; its operators."""
    network, inputs = random_network(seed)
    said = f"seed {seed}:\n{network}"
    try:
        engine = compile(network, inputs, baselines=(), threads=1, golden=True)
        engine.save(folder / "model.sinf")
        loaded = load_engine(folder / "model.sinf", threads=2)
        assert loaded.selftest() < 1
        other = tuple(
            torch.randn_like(x) if x.is_floating_point() else torch.randint_like(x, IDS)
            for x in inputs
        )
        for own, same in zip(engine(*other), loaded(*other), strict=True):
            assert torch.equal(own, same), "another result on two threads, or from the file"
        found = loaded.compare(network, other)
        assert found.first is None, str(found)
    except Exception as error:
        raise AssertionError(said) from error
    return {node["op"] for node in engine.report().nodes}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(QUICK))
def test_some(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


def test_one(tmp_path: Path) -> None:
    """A seed that the slow test printed, or one that nobody chose."""
    check(int(os.environ.get("RANDOM_GRAPHS_SEED", random.randrange(2**31))), tmp_path)


@pytest.mark.slow
def test_many(tmp_path: Path) -> None:
    """A minute of them, of seeds that were never tried before; all operators are among them.

    Where a rare operator is not among those of the minute, more are tried.
    """
    begin = time.monotonic()
    wanted = set(OPERATORS) - BYTES
    seen: set[str] = set()
    first = random.randrange(2**31)
    for seed in range(first, first + 100_000):
        seen |= check(seed, tmp_path)
        elapsed = time.monotonic() - begin
        if elapsed > SLOW and (seen >= wanted or elapsed > 4 * SLOW):
            break
    assert seen == wanted
