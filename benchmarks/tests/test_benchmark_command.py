"""What the benchmarks' commands share: their options, and what they say of the machine."""

from __future__ import annotations

import io
import os

import pytest
import typer
from rich.console import Console

from benchmarks import command
from benchmarks.models.catalogue import MODELS
from benchmarks.suites import SUITES


@pytest.mark.parametrize("text", ["", "0", "1,", "two", "-1"])
def test_thread_counts_must_be_numbers(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected thread counts"):
        command.parse_threads(text)


def test_thread_counts_are_read_in_order() -> None:
    assert command.parse_threads("2, 1") == [2, 1]


@pytest.mark.parametrize("text", ["", "90", "1", "1.0", "-0.1", "0.5;0.6", "nan", "half"])
def test_sparsities_must_be_shares(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected sparsities"):
        command.parse_sparsities(text)


def test_sparsities_are_read_in_order() -> None:
    assert command.parse_sparsities("0.9,0") == [0.9, 0.0]


@pytest.mark.parametrize(
    ("known", "text", "unknown"),
    [
        (SUITES, "cold,kernels", "fast"),
        (SUITES, "patterns,linearity", ""),
        (MODELS, "vit-b16,minilm", "minilm,bert"),
    ],
)
def test_names_must_be_known(known: dict[str, object], text: str, unknown: str) -> None:
    assert command.parse_names("all", known) == list(known)
    assert command.parse_names(text, known) == text.split(",")
    with pytest.raises(typer.BadParameter, match=f"got '{unknown.split(',')[-1]}'"):
        command.parse_names(unknown, known)


@pytest.mark.parametrize(("load", "said"), [(0.2, False), (0.8, True)])
def test_a_busy_machine_is_told(load: float, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    stream = io.StringIO()
    command.warn_if_busy(Console(file=stream), cores=2, meaning="not to be kept")
    assert ("load 0.40 a core): not to be kept" in stream.getvalue()) is said
