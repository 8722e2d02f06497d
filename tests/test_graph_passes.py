"""The passes over a graph, each alone: what they fuse, and what they leave as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import sparseinfer
from sparseinfer.export.from_torch import from_torch
from sparseinfer.export.graph import Graph
from sparseinfer.export.passes import optimize
from sparseinfer.export.passes.activation import fuse_activations
from sparseinfer.export.passes.batch_norm import fold_batch_norms
from sparseinfer.export.passes.dead_code import remove_dead_code
from sparseinfer.export.passes.depthwise import find_depthwise
from sparseinfer.export.passes.padding import fold_padding
from sparseinfer.export.passes.residual import fuse_residuals


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def graph_of(model: nn.Module, *args: Tensor) -> Graph:
    return from_torch(model.eval(), args, {})[0]


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


class Applied(nn.Module):
    """A function of a convolution's output and its input."""

    def __init__(self, function: Any, channels: int = 4) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.uniform_(self.norm.weight)
        self.norm.running_mean, self.norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


X = torch.randn(2, 4, 6, 6)


@pytest.mark.parametrize("function", [F.hardswish, F.hardsigmoid])
def test_hard_functions_become_part_of_the_layers_before_them(function: Any) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.deep = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
            self.linear = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = function(self.deep(function(self.conv(3 * x))))
            return function(8 * self.linear(x.flatten(1)))

    model = Layers().eval()
    graph = graph_of(model, X)
    optimize(graph)
    fused = [node.activation for node in graph.nodes if node.op != "reshape"]
    assert [name for name in fused if name != "none"] == [function.__name__] * 3
    assert "activation" not in ops(graph)
    engine = sparseinfer.compile(model, X, baselines=())
    torch.testing.assert_close(engine(9 * X), model(9 * X), rtol=1e-5, atol=1e-5)


def test_activations_move_past_reshapes() -> None:
    graph = graph_of(Applied(lambda m, x: torch.relu(m.conv(x).flatten(1).view(2, 4, -1))), X)
    fuse_activations(graph)
    assert ops(graph) == ["conv", "reshape", "reshape"] and graph.nodes[0].activation == "relu"
    assert graph.nodes[-1].output is graph.outputs[0]

    def twice(m: Applied, x: Tensor) -> Any:
        y = m.conv(x).flatten(1)
        return torch.relu(y), y

    graph = graph_of(Applied(twice), X)
    fuse_activations(graph)
    assert ops(graph) == ["conv", "reshape", "activation"]


def test_a_residual_that_others_read_stays() -> None:
    graph = graph_of(Applied(lambda m, x: m.conv(x) + x), X)
    fuse_residuals(graph)
    assert ops(graph) == ["conv"] and graph.nodes[0].inputs[3] is graph.inputs[0]

    def twice(m: Applied, x: Tensor) -> Tensor:
        y = m.conv(x)
        return (y + x) + y

    graph = graph_of(Applied(twice), X)
    fuse_residuals(graph)
    assert ops(graph) == ["conv", "add", "add"]


def test_a_convolution_moves_to_where_its_residual_is_there() -> None:
    def late(m: Applied, x: Tensor) -> Tensor:
        return m.conv(x) + F.max_pool2d(x, 3, 1, 1)

    graph = graph_of(Applied(late), X)
    assert ops(graph) == ["conv", "max_pool", "add"]
    fuse_residuals(graph)
    assert ops(graph) == ["max_pool", "conv"]


def test_an_activation_between_is_no_residual() -> None:
    graph = graph_of(Applied(lambda m, x: F.relu(m.conv(x)) + x), X)
    optimize(graph)
    assert ops(graph) == ["conv", "add"]
    assert [node.activation for node in graph.nodes] == ["relu", "none"]


def test_the_activation_after_a_residual_is_the_last_step() -> None:
    graph = graph_of(Applied(lambda m, x: F.relu(m.conv(x) + x)), X)
    optimize(graph)
    assert ops(graph) == ["conv"] and graph.nodes[0].activation == "relu"


def test_activations_that_others_see_the_input_of_stay() -> None:
    def both(m: Applied, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y, F.relu(y)

    graph = graph_of(Applied(both), X)
    fuse_activations(graph)
    assert ops(graph) == ["conv", "activation"]
    graph = graph_of(Applied(lambda m, x: torch.tanh(F.relu(m.conv(x)))), X)
    fuse_activations(graph)
    assert ops(graph) == ["conv", "activation"] and graph.nodes[0].activation == "relu"


def test_batch_norms_fold_where_nothing_else_reads() -> None:
    graph = graph_of(Applied(lambda m, x: m.norm(m.conv(x))), X)
    fold_batch_norms(graph)
    assert ops(graph) == ["conv"]

    def shared(m: Applied, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y, m.norm(y)

    graph = graph_of(Applied(shared), X)
    fold_batch_norms(graph)
    find_depthwise(graph)
    assert ops(graph) == ["conv", "depthwise_conv"]
    graph = graph_of(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), torch.randn(2, 4))
    fold_batch_norms(graph)
    assert ops(graph) == ["linear"]
    graph = graph_of(Applied(lambda m, x: m.norm(F.relu(m.conv(x)))), X)
    fuse_activations(graph)
    fold_batch_norms(graph)
    assert ops(graph) == ["conv", "conv"]


def test_a_batch_norm_of_a_damaged_model_is_noticed() -> None:
    model = Applied(lambda m, x: m.norm(m.conv(x)))
    model.norm.running_var = torch.tensor([1.0, -4.0, 1.0, 1.0])
    with pytest.raises(RuntimeError, match="running statistics are finite"):
        fold_batch_norms(graph_of(model, X))


@pytest.mark.parametrize(
    ("pad", "fill", "folds"),
    [((1, 0, 2, 1), 0.0, True), ((1, 1, 1, 1), 1.0, False), ((-1, 1, 0, 0), 0.0, False)],
)
def test_paddings(pad: tuple[int, ...], fill: float, folds: bool) -> None:
    graph = graph_of(Applied(lambda m, x: m.conv(F.pad(x, pad, value=fill))), X)
    fold_padding(graph)
    assert ops(graph) == (["conv"] if folds else ["pad", "conv"])
    if folds:
        assert graph.nodes[0].attributes["padding"] == [3, 2, 2, 1]


def test_a_padding_that_others_read_stays_for_them() -> None:
    def both(m: Applied, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (1, 1))
        return m.conv(padded), padded

    graph = graph_of(Applied(both), X)
    fold_padding(graph)
    assert ops(graph) == ["pad", "conv"] and graph.nodes[1].inputs[0] is graph.inputs[0]


def test_dead_code_goes() -> None:
    def unused(m: Applied, x: Tensor) -> Tensor:
        F.max_pool2d(m.conv(x), 2)
        return F.relu(x).flatten(1).view(2, -1)

    graph = graph_of(Applied(unused), X)
    remove_dead_code(graph)
    assert ops(graph) == ["activation", "reshape"]


def test_what_only_constants_go_into_is_computed_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    graph = graph_of(model, torch.randn(1, 4))
    assert ops(graph) == ["linear", "activation"]
    weight = graph.nodes[0].inputs[1]
    assert weight is not None and weight.constant is not None
    assert torch.equal(weight.constant, model[0].weight)


def test_grouped_convolutions_are_not_depthwise() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, dilation=2),
    )  # fmt: skip
    graph = graph_of(model, torch.randn(1, 4, 12, 12))
    find_depthwise(graph)
    assert ops(graph) == ["conv", "depthwise_conv", "conv"]
