"""What a program may switch for its whole process: each is another comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseinfer.convert.occupancy import occupancy
from sparseinfer.timing import clock, conditions
from sparseinfer.timing.measure import Comparison
from sparseinfer.timing.tuning import Cache, Tuner

FOUND = Comparison(2.0, 1.0, 2.0, 1.75, 2.25, 40)
PROBLEM = {"label": "linear 8x8 panel"}


@contextmanager
def _set(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


SWITCHES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to another type": lambda: torch.autocast("cpu", dtype=torch.float16),
    "matmul precision": lambda: _set(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "mkldnn off": lambda: torch.backends.mkldnn.flags(enabled=False),
    "cuDNN benchmark": lambda: _attribute(torch.backends.cudnn, "benchmark", True),
    "cuDNN deterministic": lambda: _attribute(torch.backends.cudnn, "deterministic", True),
    "flush denormal": lambda: _set(lambda: False, torch.set_flush_denormal, True),
    "deterministic": lambda: _set(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default type": lambda: _set(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "attention without its fast kernel": lambda: _set(
        torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_a_comparison_is_recalled_only_under_equal_conditions(name: str, tmp_path: Path) -> None:
    def tuner() -> Tuner:
        return Tuner(1, torch.device("cpu"), 1.05, cache=Cache(tmp_path))

    first = tuner()
    first.keep(PROBLEM, FOUND)
    first.flush()
    with SWITCHES[name]():
        assert first.recall(PROBLEM) is None and tuner().recall(PROBLEM) is None
    assert first.recall(PROBLEM) == tuner().recall(PROBLEM) == FOUND


def test_the_environment_of_the_libraries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = conditions.conditions()
    monkeypatch.setenv("UNRELATED", "1")
    assert conditions.conditions() == before
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert conditions.conditions() != before


def test_json_holds_them() -> None:
    found = conditions.conditions()
    assert json.loads(json.dumps(found)) == found


def test_where_the_zeros_are_is_another_problem() -> None:
    rows, anywhere, channels = (torch.zeros(64, 64) for _ in range(3))
    rows[:16] = 1
    channels[:, :16] = 1
    anywhere[:, ::4] = torch.eye(64)[:, ::4]
    assert len({occupancy(weight) for weight in (rows, anywhere, channels)}) == 3
    assert occupancy(rows) == "rows 0.24, channels 1, panels 0.24"
    kernels = torch.zeros(8, 4, 3, 3)
    kernels[:, :2] = 1
    assert occupancy(kernels) == "rows 1, channels 0.5, panels 0.5"
    assert occupancy(torch.ones(3, 5)) == "rows 1, channels 1, panels 1"


def test_the_real_clock_and_a_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = clock.Clock()
    assert real.wall() > 0 and real.thread() >= 0 and real.preemptions() >= 0
    monkeypatch.delattr(clock.os, "getloadavg")
    assert real.load() is None
    monkeypatch.setattr(conditions.sys, "gettrace", lambda: print)
    assert conditions.conditions()["traced"]
