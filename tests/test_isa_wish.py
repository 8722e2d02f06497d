"""SPARSEINFER_ISA: what cannot be obeyed is an error at import, and the doctor still starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparseinfer import _C


def _python(wish: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPARSEINFER_ISA": wish, "COLUMNS": "400"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


LACKING = [isa["name"] for isa in _C.isas() if not isa["compiled"]]
KNOWN = ", ".join(isa["name"] for isa in _C.isas())


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["foo", "AVX2", " scalar", *LACKING])
def test_a_wish_that_cannot_be_granted_is_an_error_at_import(wish: str) -> None:
    done = _python(wish, "-c", "import sparseinfer")
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    if wish in LACKING:
        assert "to be one that runs here (scalar" in last and "another processor family" in last
    else:
        assert f"expected SPARSEINFER_ISA to be one of {KNOWN}, got {wish!r}" in last
    assert "unset it" in last


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wish", ["", "scalar"])
def test_a_wish_that_can_be_granted_is(wish: str) -> None:
    script = "from sparseinfer.timing.machine import selected_isa as f; print(f())"
    done = _python(wish, "-c", script)
    assert done.returncode == 0, done.stderr
    assert wish == "" or done.stdout == "scalar\n"


def test_the_doctor_starts_and_says_it() -> None:
    done = _python("foo", "-m", "sparseinfer", "doctor")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"expected SPARSEINFER_ISA to be one of {KNOWN}, got 'foo'" in done.stdout
    assert "linear layers cannot run sparse here" in done.stdout
