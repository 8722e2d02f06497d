"""Sparse layers in child processes, forked or spawned, after the parent has used threads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from oracle import sparse_weight
from torch import Tensor, nn

from sparseinfer import SparseConv2d, SparseLinear


def _network() -> Any:
    conv, linear = nn.Conv2d(8, 32, 3, padding=1), nn.Linear(32 * 14 * 14, 64)
    for layer in (conv, linear):
        layer.weight.data = sparse_weight(layer.weight.shape, 0.2)  # type: ignore[attr-defined]
    # No layer of torch between: its own threads (GNU OpenMP) do not survive a fork.
    return nn.Sequential(
        SparseConv2d.from_dense(conv, activation="relu"), nn.Flatten(),
        SparseLinear.from_dense(linear),
    ).eval()  # fmt: skip


def _answer(model: nn.Module, x: Tensor, answers: Any, index: int) -> None:
    """Put numpy bytes in the queue: a tensor's shared memory would go with the child."""
    with torch.no_grad():
        answers.put((index, torch.get_num_threads(), model(x).numpy().tobytes()))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_compute_what_the_parent_does(method: str) -> None:
    model, x = _network(), torch.randn(8, 8, 14, 14)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = model(x).numpy().tobytes()  # starts the parent's threads
        context = mp.get_context(method)
        answers = context.Queue()
        # A spawned child gets the model by pickle, in shared memory; a forked one has it already.
        given = copy.deepcopy(model).share_memory() if method == "spawn" else model
        children = [
            context.Process(target=_answer, args=(given, x, answers, index), daemon=True)
            for index in range(2)
        ]
        for child in children:
            child.start()
        found = sorted(answers.get(timeout=60) for _ in children)
        for child in children:
            child.join(timeout=60)
    finally:
        torch.set_num_threads(before)
    assert [child.exitcode for child in children] == [0, 0]
    assert [index for index, _, _ in found] == [0, 1]
    assert all(answer == expected for _, _, answer in found)
    with torch.no_grad():
        assert model(x).numpy().tobytes() == expected
