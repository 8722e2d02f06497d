"""Every row of the table of layer kinds says of its dense and its sparse layer what is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparseinfer import SparseLinear
from sparseinfer.layers.kinds import KINDS, Kind, kind_named, kind_of, kind_of_sparse
from sparseinfer.prune.targets import find_targets

WITH_KERNEL = [kind for kind in KINDS if kind.sparse is not None and kind.parts is None]


class Narrow(Conv1D):
    """Differs from transformers' layer when it is made, and not after."""

    def __init__(self) -> None:
        super().__init__(8, 4)


def _dense(kind: Kind) -> Any:
    if kind.empty_call is not None:
        return kind.empty_call[0]()
    return Conv1D(8, 4) if isinstance(kind.dense, tuple) else kind.dense(4, 8)


@pytest.mark.parametrize("kind", WITH_KERNEL, ids=lambda kind: f"{kind.name}-{kind.output_dim}")
def test_layers_of_every_kind_are_read_and_built_again(kind: Kind) -> None:
    dense = _dense(kind)
    assert kind_of(dense) is kind
    names = [*kind.weights(dense), *kind.biases(dense)]
    assert set(names) == {name for name, _ in dense.named_parameters()}
    matrix = kind.matrix(dense)
    assert matrix is not None
    assert matrix.numel() == sum(dense.get_parameter(n).numel() for n in kind.weights(dense))
    again = kind.rebuild(dense, matrix, kind.effective_biases(dense))
    own = kind_of(again)
    assert own is not None and own.name == kind.name
    for name in names:
        expected = dense.get_parameter(name)
        found = again.get_parameter(name)
        assert torch.equal(found.t() if isinstance(dense, Conv1D) and found.dim() == 2 else found,
                           expected)  # fmt: skip
        assert not found.requires_grad


@pytest.mark.parametrize("kind", WITH_KERNEL, ids=lambda kind: f"{kind.name}-{kind.output_dim}")
def test_sparse_layers_of_every_kind_tell_what_the_table_does(kind: Kind) -> None:
    dense = _dense(kind)
    matrix = kind.matrix(dense)
    assert matrix is not None
    sparse = kind.sparse.from_dense(kind.rebuild(dense, matrix, kind.effective_biases(dense)))
    own = kind_of_sparse(sparse)
    assert own is not None and own.name == kind.name and kind_of(sparse) is None
    assert torch.equal(sparse.dense_weight(), matrix)
    assert tuple(sparse.weight_shape) == tuple(matrix.shape)
    renames = kind.sparse.renames(dense)
    stored = {renames.get(name, name) for name in [*kind.weights(dense), *kind.biases(dense)]}
    assert stored == set(sparse.state_dict())
    assert kind.packed_in(dense, "a.", {f"a.{name}" for name in stored})
    assert not kind.packed_in(dense, "a.", stored)
    plain = sparse.plain()
    assert type(plain) is type(sparse.to_dense())
    assert all(parameter.is_meta for parameter in plain.parameters())


def test_what_an_empty_call_is_given_and_gives() -> None:
    for kind in KINDS:
        if kind.empty_call is not None:
            build, shape = kind.empty_call
            layer = build()
            assert layer(torch.zeros(shape)).numel() > 0
            assert kind.tokens(layer, shape) in (1, 2, 4)


def test_kinds_that_are_only_pruned_or_are_made_of_parts() -> None:
    for dense in (nn.Conv3d(2, 4, 1), nn.ConvTranspose3d(2, 4, 1)):
        kind = kind_of(dense)
        assert kind is not None and kind.sparse is None and kind.weights(dense) == ["weight"]
    kind = kind_of(nn.MultiheadAttention(8, 2))
    assert kind is not None and kind.parts is not None
    for separate, roles in ((False, ["in_proj", "out_proj"]),
                            (True, ["q_proj", "k_proj", "v_proj", "out_proj"])):  # fmt: skip
        parts = kind.parts(nn.MultiheadAttention(8, 2), separate)
        assert [part.role for part in parts] == roles
        assert all(kind_of(part) is kind_named("linear") for part in parts)
    assert kind_of(nn.ReLU()) is None and kind_of_sparse(nn.Linear(2, 2)) is None


def test_conv1d_of_transformers_and_its_subclasses_are_linear() -> None:
    for layer in (Conv1D(8, 4), Narrow()):
        kind = kind_of(layer)
        assert kind is not None and kind.name == "linear" and kind.sparse is SparseLinear
        assert kind.class_of(layer) is Conv1D
        (target,), _, _ = find_targets(nn.Sequential(layer))
        assert target.output_dim == 1 and target.canonical(target.weight).shape == (8, 4)
