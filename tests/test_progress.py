"""The bar appears where someone waits for it at a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from oracle import sparse_weight
from torch import nn

from sparseinfer import convert_to_sparse, progress
from sparseinfer.progress import PATIENCE_S, Bar

MARK = "<end of what is shown>"


class Terminal:
    """A pseudo-terminal in place of standard error, and a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._monkeypatch = monkeypatch
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setenv("TERM", "xterm")
        for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)

    def attach(self) -> None:
        """Called in the test itself: pytest puts its own stream there before every phase."""
        self._monkeypatch.setattr(sys, "stderr", self.stream)

    def shown(self) -> str:
        """What was written since the last time; a mark behind it says when all has arrived."""
        self.stream.write(MARK)
        self.stream.flush()
        text = ""
        while MARK not in text:
            text += os.read(self._master, 65536).decode(errors="replace")
        return text.removesuffix(MARK)

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(monkeypatch)
    yield terminal
    monkeypatch.undo()
    terminal.close()


def test_on_a_terminal_it_appears_after_two_seconds(terminal: Terminal) -> None:
    terminal.attach()
    assert PATIENCE_S == 2.0
    with Bar("converting", 4, show=None) as bar:
        bar.advance()
        terminal.now = 1.9
        bar.advance()
        assert terminal.shown() == ""
        terminal.now = 2.1
        bar.advance()
        assert "converting" in terminal.shown()
        bar.describe("timing the whole model")
        shown = terminal.shown()
        assert "timing the whole model" in shown and "75%" in shown
        bar.advance()
        assert "100%" in terminal.shown()
    assert "\x1b[2K" in terminal.shown()  # and is gone


def test_it_is_not_drawn_between_steps(terminal: Terminal) -> None:
    """A thread that draws would take time from what is timed."""
    terminal.attach()
    with Bar("converting", 2, show=True) as bar:
        assert bar._progress is not None and not bar._progress.live.auto_refresh
        assert bar._progress.live._refresh_thread is None


def test_a_long_step_shows_too(terminal: Terminal) -> None:
    """The last step may take all the time: what it does between timings draws the bar."""
    terminal.attach()
    with Bar("timing the whole model", 2, show=None) as bar:
        terminal.now = 1.0
        bar.tick()
        assert terminal.shown() == ""
        terminal.now = 2.1
        bar.tick()
        assert "timing the whole model" in terminal.shown()
        terminal.now = 2.2
        bar.tick()
        assert terminal.shown() == ""  # drawn just now


def test_quick_work_shows_nothing(terminal: Terminal) -> None:
    terminal.attach()
    with Bar("converting", 1, show=None) as bar:
        bar.advance()
    assert terminal.shown() == ""


@pytest.mark.parametrize("show", [None, False])
def test_who_is_quiet_or_no_terminal_sees_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, show: bool | None
) -> None:
    terminal.attach()
    if show is None:
        monkeypatch.setattr(terminal.stream, "isatty", lambda: False, raising=False)
    with Bar("converting", 1, show=show) as bar:
        terminal.now = 100.0
        bar.advance()
        bar.describe("timing the whole model")
    assert terminal.shown() == ""


def test_the_bar_is_taken_down_when_an_error_passes(terminal: Terminal) -> None:
    terminal.attach()
    with pytest.raises(KeyError), Bar("converting", 2, show=True) as bar:
        bar.advance()
        raise KeyError
    assert bar._progress is not None and not bar._progress.live.is_started
    assert terminal.shown().endswith("\x1b[2K")


def test_conversion_shows_both_of_its_parts(terminal: Terminal) -> None:
    terminal.attach()
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data = sparse_weight((8, 8), 0.3)
    convert_to_sparse(model, example_inputs=torch.randn(1, 8), min_speedup=0, progress=True)
    shown = terminal.shown()
    assert "converting" in shown and "timing the whole model" in shown and "100%" in shown
    convert_to_sparse(model, example_inputs=torch.randn(1, 8), min_speedup=0, progress=False)
    assert terminal.shown() == ""
