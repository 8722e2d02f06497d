"""A conversion leaves the model's state, its inputs and the random state as they were."""

from __future__ import annotations

import array
import collections
import copy
import itertools
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn

from sparseinfer import convert_to_sparse
from sparseinfer.convert.observe import observe, run_on
from sparseinfer.convert.state import COPIED_BYTES, State


def _layer() -> nn.Linear:
    layer = nn.Linear(16, 16)
    layer.weight.data = sparse_weight(layer.weight.shape, 0.2)
    return layer


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _layer()


class Stream(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(1, 16))
        self.register_buffer("frames", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.state = torch.tanh(self.layer(self.state) + x)
        self.frames += 1
        return self.state


class Attribute(_Model):
    """A plain tensor, written in place and through `.data`, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.calls = torch.zeros(16), 0
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        self.kept[self.calls % 16] += 1
        self.calls += 1
        self.scale.data = self.scale.data * 1.5
        self.scale.data.clamp_(max=9.0)
        return self.layer(x) * self.scale + self.kept


class Cache:
    def __init__(self) -> None:
        self.keys: dict[str, list[Tensor]] = {}
        self.length = 0


class Cached(_Model):
    """A cache in an object of its own, a list, a dict and a class attribute."""

    seen: list[int] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.cache, self.steps = Cache(), [0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        held = self.cache.keys.setdefault("k", [])
        held.append(y)
        self.cache.length += 1
        self.steps[0] += 1
        self.seen.append(self.cache.length)
        return y + len(held)


class Numbered(_Model):
    """An iterator, generators of random numbers and a numpy array."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = itertools.count()
        self.random, self.array = random.Random(0), np.zeros(4)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        self.array += 1
        noise = torch.rand(16, generator=self.generator) + self.random.random()
        return self.layer(x) + next(self.ids) + noise + float(self.array[0])


class Normalized(_Model):
    """Batch normalization that goes on learning its statistics in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        y = self.norm(self.layer(x))
        return y + self.norm.running_mean


class Slots:
    __slots__ = ("calls", "last")

    def __init__(self) -> None:
        self.calls = 0


class Holding(_Model):
    """Slots, namespaces, containers and generators that are no plain lists, dicts and objects."""

    def __init__(self) -> None:
        super().__init__()
        self.slots, self.space = Slots(), types.SimpleNamespace(ids=[itertools.count()])
        self.user, self.numbers = collections.UserDict(n=0), array.array("d", [0.0])
        self.draw, self.legacy = np.random.default_rng(0), np.random.RandomState(0)

    def forward(self, x: Tensor) -> Tensor:
        self.slots.calls += 1
        self.slots.last = getattr(self.slots, "last", 0.0) + 1
        self.user["n"] += 1
        self.numbers[0] += 1
        steps = self.slots.calls + self.slots.last + self.user["n"] + self.numbers[0]
        noise = self.draw.random() + self.legacy.rand() + next(self.space.ids[0])
        return self.layer(x) + float(steps + noise)


class Growing(_Model):
    """New keys at every call, and hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[object, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.met[object()] = 1
        self.register_forward_hook(lambda module, args, y: y + 1)
        return self.layer(x) + len(self.met)


class Scripted(_Model):
    """A TorchScript part that assigns a buffer, writes into one and counts."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("sum", torch.zeros(16))
            self.register_buffer("last", torch.zeros(16))
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.last + x[0]
            self.sum.add_(x[0])
            self.calls += 1
            return self.last + self.sum + self.calls

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.jit.script(self.Part())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.part(x)


class Wrapped(nn.DataParallel):
    def __init__(self) -> None:
        super().__init__(Stream())


MODELS: list[Callable[[], nn.Module]] = [
    Stream, Attribute, Cached, Numbered, Normalized, Holding, Growing, Scripted, Wrapped,
]  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("make", MODELS)
def test_a_converted_model_starts_where_the_model_stood(
    make: Callable[[], nn.Module], inplace: bool
) -> None:
    Cached.seen.clear()
    model = make()
    twin, x = copy.deepcopy(model), torch.randn(2, 16)
    given = x.clone()
    sparse = convert_to_sparse(
        model, example_inputs=x, min_speedup=0, inplace=inplace, budget_s=2, cache=False
    )
    assert torch.equal(x, given) and not Cached.seen
    assert sparse.training and all(module.training for module in sparse.modules())
    for _ in range(2):
        expected = twin(given.clone())
        if not inplace:
            torch.testing.assert_close(model(given.clone()), expected, rtol=0, atol=0)
        torch.testing.assert_close(sparse(given.clone()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("baseline", ["eager", "channels_last", "auto"])
def test_inputs_changed_in_place(baseline: str) -> None:
    met: list[float] = []

    class Preprocessing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, batch: dict[str, Any]) -> Tensor:
            x = batch.pop("x")
            met.append(float(x.mean()))
            x.sub_(1.0).clamp_(-3, 3)
            batch["note"].numpy()[0] += 1
            return self.layer(x)

    x, note = torch.randn(1, 3, 8, 8), torch.zeros(1)
    batch = {"x": x, "note": note}
    given = x.clone()
    convert_to_sparse(
        Preprocessing(), example_inputs=(batch,), min_speedup=0, baseline=baseline, budget_s=2,
        cache=False,
    )  # fmt: skip
    assert list(batch) == ["x", "note"] and batch["x"] is x
    assert torch.equal(x, given) and float(note) == 0.0
    assert len(met) > 3 and max(met) - min(met) < 1e-6


def test_every_example_meets_the_same_state() -> None:
    model = Stream().eval()
    examples = [torch.randn(1, 16), torch.randn(1, 16)]
    observe(model, [model.layer], examples)
    assert int(model.frames) == 0 and not model.state.any()


def test_an_error_in_the_middle_leaves_no_trace() -> None:
    class Failing(Stream):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            x.zero_()
            raise KeyboardInterrupt

    model, x = Failing(), torch.randn(1, 16)
    given = x.clone()
    with pytest.raises(KeyboardInterrupt):
        convert_to_sparse(model, example_inputs=x)
    assert int(model.frames) == 0 and not model.state.any() and torch.equal(x, given)


def test_random_states_of_all_libraries_stay() -> None:
    class Noisy(_Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + torch.rand(()) + random.random() + np.random.rand()

    model, x = Noisy(), torch.randn(1, 16)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    convert_to_sparse(model, example_inputs=x, min_speedup=0, budget_s=1)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_a_model_that_changes_nothing_costs_nothing_more() -> None:
    assert not run_on(nn.Sequential(_layer(), nn.ReLU()), [((torch.randn(2, 16),), {})])


def test_only_tensors_that_are_written_are_copied() -> None:
    weight, written = torch.zeros(1 << 19), torch.zeros(1 << 19)
    state = State([weight, written])
    with state.watching():
        written.add_(1)
    assert list(state._saved) == [written.untyped_storage().data_ptr()]
    state.changes().restore()
    assert not written.any()


def test_what_functions_on_a_model_count_is_put_back() -> None:
    model, calls = _Model(), 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return model.layer(x) + calls

    model.forward = counted
    convert_to_sparse(model, example_inputs=torch.randn(1, 16), min_speedup=0, budget_s=1)
    assert calls == 0


def test_large_inputs_that_numpy_writes_into_are_put_back() -> None:
    class Preprocessing(_Model):
        def forward(self, x: Tensor) -> Tensor:
            x.numpy()[:] += 1
            return self.layer(x)

    x = torch.zeros(1 << 15, 16)
    assert x.nbytes > COPIED_BYTES
    convert_to_sparse(Preprocessing(), example_inputs=x, min_speedup=0, budget_s=1, cache=False)
    assert not x.any()


def test_the_first_call_makes_lazy_parameters() -> None:
    model = nn.Sequential(_layer(), nn.LazyLinear(4))
    sparse = convert_to_sparse(model, example_inputs=torch.randn(2, 16), min_speedup=0, budget_s=1)
    assert type(sparse[0]).__name__ == "SparseLinear" and sparse(torch.randn(2, 16)).shape == (2, 4)


def test_examples_that_one_call_uses_up_are_refused() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.zeros(1, 16)

    with pytest.raises(TypeError, match=r"again and again, got a generator.*try a list"):
        convert_to_sparse(_layer(), example_inputs=(batches(),))
