"""What conversions share: the process's switches, and the host's memory beside a GPU's."""

from __future__ import annotations

import gc
import pkgutil
import pydoc
import threading

import pytest
import torch
from matplotlib.figure import Figure
from oracle import sparse_weight
from torch import nn

import sparseinfer
from sparseinfer import api, convert_to_sparse, formats
from sparseinfer.formats import handles
from sparseinfer.plotting import name_lines
from sparseinfer.timing.measure import torch_threads


def _together(*calls: object) -> None:
    errors: list[BaseException] = []

    def run(call: object) -> None:
        try:
            call()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_two_that_set_the_number_of_threads_wait_for_each_other() -> None:
    before = torch.get_num_threads()
    inside, entered = threading.Event(), threading.Event()

    def first() -> None:
        with torch_threads(3):
            inside.set()
            assert not entered.wait(0.2) and torch.get_num_threads() == 3

    def second() -> None:
        inside.wait()
        with torch_threads(None) as threads:
            entered.set()
            assert threads == before

    _together(first, second)
    assert torch.get_num_threads() == before


def test_conversions_at_once_leave_every_switch_as_it_was() -> None:
    before = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    state = torch.random.get_rng_state()

    def convert(threads: int) -> None:
        model = nn.Sequential(nn.Linear(32, 32))
        with torch.no_grad():
            model[0].weight.copy_(sparse_weight((32, 32), 0.3))
        convert_to_sparse(model, example_inputs=torch.ones(2, 32), threads=threads, budget_s=0.3)

    torch.random.set_rng_state(state)
    _together(*(lambda threads=threads: convert(threads) for threads in (1, 2, 3, 1)))
    assert (torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()) == before


def test_a_switch_is_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="expected threads >= 1"), torch_threads(0):
        pass
    _together(lambda: None)
    with torch_threads(None) as threads:
        assert threads == before


@pytest.mark.parametrize("format", formats.FORMATS)
def test_of_a_buffer_on_a_gpu_the_host_keeps_the_header_alone(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = formats.pack(sparse_weight((64, 64), 0.3, nm=(2, 4)), format)
    here = handles.Handle(packed)
    copied = packed.clone()
    monkeypatch.setattr(handles, "_read_by_host", lambda device: False)
    monkeypatch.setattr(handles, "host_bytes", lambda packed: copied)
    there = handles.Handle(packed)
    assert there.memory is None and not isinstance(there.weights, handles.native.Weights)
    for name in ("format", "shape", "groups", "nnz", "nbytes"):
        assert getattr(there.weights, name) == (
            tuple(here.weights.shape) if name == "shape" else getattr(here.weights, name)
        )
    assert (there.info, there.m, there.k, there.dtype) == (here.info, here.m, here.k, here.dtype)
    assert not any(held is copied for held in gc.get_referents(there, vars(there)))


def test_a_damaged_buffer_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "_read_by_host", lambda device: False)
    packed = formats.pack(sparse_weight((64, 64), 0.3))
    packed[200] ^= 1
    with pytest.raises(ValueError, match="its checksum does not match"):
        handles.Handle(packed)


def test_the_package_says_what_it_has_on_one_screen() -> None:
    text = sparseinfer.__doc__
    assert text is not None and len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in api.__all__ if not name.startswith("_"))


def test_help_is_what_the_package_says_and_its_modules() -> None:
    modules = len(list(pkgutil.iter_modules(sparseinfer.__path__)))
    page = pydoc.render_doc(sparseinfer, renderer=pydoc.plaintext)
    assert sparseinfer.__doc__ is not None
    assert len(page.splitlines()) < len(sparseinfer.__doc__.splitlines()) + modules + 30
    assert sparseinfer._PUBLIC == set(api.__all__) and set(api.__all__) <= set(dir(sparseinfer))


def test_a_legend_shows_any_name() -> None:
    axis = Figure().subplots()
    lines = [axis.plot([0, 1], [0, i])[0] for i in range(3)]
    names = ["_orig.weight", "a$b$c", "plain"]
    name_lines(axis, lines, names)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == names
