"""The passes that place attention, each alone: views, projections, norms and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparseinfer
from sparseinfer.export.errors import UnsupportedOperators
from sparseinfer.export.from_torch import from_torch
from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.passes.attention import place_attention
from sparseinfer.export.passes.dead_code import remove_dead_code
from sparseinfer.export.passes.norm import fuse_norm_residuals
from sparseinfer.export.passes.projections import merge_projections
from sparseinfer.export.passes.views import simplify_views, sink_views
from sparseinfer.export.views import View, view_of


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def graph_of(function: Callable[..., Any], *inputs: Tensor, **layers: nn.Module) -> Graph:
    return from_torch(Applied(function, **layers).eval(), inputs, {})[0]


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def moved(view: View, x: Tensor) -> Tensor:
    """The elements of a view, by its factors alone."""
    sizes = [size for axis in view.axes for size, _ in axis]
    steps = [step for axis in view.axes for _, step in axis]
    return x.reshape(-1).as_strided(sizes, steps, view.offset).reshape(view.shape)


@pytest.mark.parametrize("seed", range(40))
def test_views_are_what_torch_computes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    shape = (2 + pick(3), 6, 4 * (1 + pick(2)))
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    view, y = View.of(Value("x", shape)), x
    for _ in range(5):
        kind = pick(3)
        if kind == 0:
            axes = torch.randperm(y.dim(), generator=generator).tolist()
            view, y = view.permuted(axes), y.permute(axes)
        elif kind == 1:
            first = pick(y.dim())
            size = y.shape[first]
            cut = next(part for part in (2, 3, size) if size % part == 0)
            shape = (*y.shape[:first], cut, size // cut, *y.shape[first + 1 :])
            if pick(2):
                shape = (y.numel(),)
            found = view.reshaped(shape)
            if found is None:
                continue
            view, y = found, y.reshape(shape)
        else:
            axis = pick(y.dim())
            first = pick(y.shape[axis])
            found = view.cut(axis, first, y.shape[axis] - first)
            if found is None:
                continue
            view, y = found, y.narrow(axis, first, y.shape[axis] - first)
        assert view.shape == tuple(y.shape) and torch.equal(moved(view, x), y)
    strides = view.strides()
    if strides is not None:
        assert torch.equal(x.reshape(-1).as_strided(y.shape, strides, view.offset), y)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda m, x: x.transpose(1, 2).transpose(1, 2), []),
        (lambda m, x: x.view(2, 12).view(2, 3, 4).reshape(6, 4), ["reshape"]),
        (lambda m, x: x.permute(2, 0, 1).permute(0, 2, 1), ["permute"]),
        # Axes that follow one another are turned as one.
        (lambda m, x: x.permute(2, 0, 1).permute(2, 0, 1), ["reshape", "permute", "reshape"]),
        (lambda m, x: x.transpose(0, 1).reshape(6, 4), ["permute", "reshape"]),
        (lambda m, x: x.view(2, 3, 2, 2).permute(0, 2, 1, 3).permute(0, 2, 1, 3), ["reshape"]),
        (lambda m, x: x.view(1, 2, 3, 4).permute(1, 0, 2, 3), ["reshape"]),
        (lambda m, x: x.transpose(0, 1)[:, :1], ["permute", "slice"]),
    ],
)
def test_views_in_a_row(change: Callable[..., Tensor], left: list[str]) -> None:
    graph = graph_of(change, torch.randn(2, 3, 4))
    shapes = [value.shape for value in graph.outputs]
    simplify_views(graph)
    remove_dead_code(graph)
    assert ops(graph) == left and [value.shape for value in graph.outputs] == shapes


def test_permutes_sink_through_linear_layers() -> None:
    def turned(m: Any, x: Tensor) -> Tensor:
        return m.fc(x.transpose(0, 1)).transpose(0, 1)

    graph = graph_of(turned, torch.randn(2, 3, 4), fc=nn.Linear(4, 5))
    sink_views(graph)
    simplify_views(graph)
    remove_dead_code(graph)
    assert ops(graph) == ["linear"] and graph.nodes[0].inputs[0] is graph.inputs[0]
    # Columns that were turned are others: that layer stays where it is.
    graph = graph_of(lambda m, x: m.fc(x.transpose(1, 2)), torch.randn(2, 4, 3), fc=nn.Linear(4, 5))
    sink_views(graph)
    assert ops(graph) == ["permute", "linear"]


def attention(*parts: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(*parts)


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def placed(function: Callable[..., Any], *inputs: Tensor, **layers: nn.Module) -> Node:
    graph = graph_of(function, *inputs, **layers)
    place_attention(graph)
    return next(node for node in graph.nodes if node.op == "attention")


def test_attention_reads_heads_where_they_stand() -> None:
    x = torch.randn(2, 5, 24)
    node = placed(lambda m, x: attention(*(heads(part) for part in x.split(8, 2))), x)
    assert node.attributes["first"] == [0, 8, 16] and not node.attributes["tokens_first"]
    assert len(set(node.inputs[:3])) == 1
    # A part of them, in another order than queries, keys, values.
    node = placed(
        lambda m, x: attention(heads(x[..., 10:18]), heads(x[..., 2:10]), heads(x[..., 16:])), x
    )
    assert node.attributes["first"] == [10, 2, 16]

    def tokens_first(m: Any, x: Tensor) -> Tensor:
        parts = x.split(8, 2)
        return attention(*(part.view(2, 5, 2, 4).permute(1, 2, 0, 3) for part in parts))

    node = placed(tokens_first, x)
    assert node.attributes["tokens_first"] and node.output.shape == (2, 5, 8)


def test_what_stands_elsewhere_is_brought_there() -> None:
    x = torch.randn(2, 2, 5, 4)
    graph = graph_of(lambda m, x: attention(x, x, x), x)
    place_attention(graph)
    assert ops(graph).count("permute") == 4
    # One is by tokens, and two by heads: all of them are given by tokens.
    graph = graph_of(lambda m, x, y: attention(heads(y), x, x), x, torch.randn(2, 3, 8))
    place_attention(graph)
    assert ops(graph).count("permute") == 4 and graph.nodes[-3].inputs[0] is graph.inputs[1]


class Projected(nn.Module):
    def __init__(self, biases: tuple[bool, bool, bool]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias) for bias in biases)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        sources = (x, y, y) if y.shape[1] != x.shape[1] else (x, x, x)
        parts = [heads(layer(own)) for layer, own in zip(self.layers, sources, strict=True)]
        return attention(*parts)


@pytest.mark.parametrize("biases", [(True,) * 3, (False,) * 3, (True, False, True)])
@pytest.mark.parametrize("keys", [5, 7])
def test_projections_of_one_tensor_are_one(biases: Any, keys: int) -> None:
    model = Projected(biases)
    graph = from_torch(model, (torch.randn(2, 5, 8), torch.randn(2, keys, 8)), {})[0]
    place_attention(graph)
    remove_dead_code(graph)
    merge_projections(graph)
    layers = [node for node in graph.nodes if node.op == "linear"]
    # Of one tensor all three, and of two the keys and values.
    assert [layer.output.shape[-1] for layer in layers] == ([24] if keys == 5 else [8, 16])
    assert layers[-1].inputs[1] is not None and layers[-1].inputs[1].constant is not None
    first = 0 if keys == 5 else 1
    weight = torch.cat([layer.weight for layer in model.layers[first:]])
    assert torch.equal(layers[-1].inputs[1].constant, weight)
    bias = layers[-1].inputs[2]
    if bias is None:
        assert not any(biases[first:])
    else:
        zeros = torch.zeros(8)
        own = [zeros if layer.bias is None else layer.bias for layer in model.layers[first:]]
        assert bias.constant is not None and torch.equal(bias.constant, torch.cat(own))


def test_projections_that_others_read_stay() -> None:
    def twice(m: Any, x: Tensor) -> Any:
        q = m.q(x)
        return attention(heads(q), heads(m.k(x)), heads(m.v(x))), q

    graph = graph_of(twice, torch.randn(1, 3, 8), **{n: nn.Linear(8, 8) for n in "qkv"})
    place_attention(graph)
    remove_dead_code(graph)
    merge_projections(graph)
    rows = [node.output.shape[-1] for node in graph.nodes if node.op == "linear"]
    assert rows == [8, 16]


def test_norms_take_the_sum_before_them() -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    graph = graph_of(lambda m, x, y: m.norm(x + y), x, y, norm=nn.LayerNorm(4))
    fuse_norm_residuals(graph)
    assert ops(graph) == ["layer_norm"] and graph.nodes[0].inputs[3] is graph.inputs[1]

    def read_again(m: Any, x: Tensor, y: Tensor) -> Tensor:
        both = x + y
        return m.norm(both) + both

    for function in (read_again, lambda m, x, y: m.norm(torch.relu(x + y))):
        graph = graph_of(function, x, y, norm=nn.LayerNorm(4))
        fuse_norm_residuals(graph)
        assert ops(graph)[0] == "add" and len(graph.nodes) == 3


def masked(function: Callable[[Tensor], Tensor], mask: Tensor) -> Graph:
    def apply(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        y = heads(x)
        return nn.functional.scaled_dot_product_attention(y, y, y, function(mask))

    return graph_of(apply, torch.randn(2, 3, 8), mask)


def where_of(graph: Graph) -> tuple[Node, Tensor, Tensor]:
    node = next(node for node in graph.nodes if node.op == "where")
    otherwise, if_zero = (value.constant for value in node.inputs[1:] if value is not None)
    assert otherwise is not None and if_zero is not None
    return node, otherwise, if_zero


IDS = torch.tensor([[1, 1, 0], [1, 0, 0]])
INF = float("inf")


@pytest.mark.parametrize(
    ("function", "exact", "otherwise", "if_zero"),
    [
        (lambda m: m[:, None, None].bool(), False, 0.0, -INF),
        (lambda m: m[:, None, None] != 0, False, 0.0, -INF),
        (lambda m: (m == 0)[:, None, None], False, -INF, 0.0),
        (lambda m: ~(m.bool()[:, None, None].expand(2, 1, 3, 3)), False, -INF, 0.0),
        (lambda m: (1.0 - m[:, None, None].float()) * -9.0, True, 0.0, -9.0),
        (lambda m: torch.where(m.bool(), 2.0, -3.0)[:, None, None], False, 2.0, -3.0),
        (lambda m: torch.zeros(2, 1, 1, 3).masked_fill(m[:, None, None] == 0, -5.0), False,
         0.0, -5.0),
    ],
)  # fmt: skip
def test_masks_are_one_choice(
    function: Callable[[Tensor], Tensor], exact: bool, otherwise: float, if_zero: float
) -> None:
    node, a, b = where_of(masked(function, IDS))
    assert node.output.shape == (2, 1, 1, 3) and node.attributes["exact"] is exact
    assert a.shape == b.shape == (1, 1, 1, 1)
    assert (a.item(), b.item()) == (otherwise, if_zero)


def test_masks_of_queries_are_as_wide_as_the_keys() -> None:
    node, a, b = where_of(masked(lambda m: m[:, None, :, None].bool().expand(2, 1, 3, 3), IDS))
    assert node.output.shape == (2, 1, 3, 3) and a.shape == (1, 1, 1, 3) and b.shape == (1,) * 4


def test_masks_with_what_positions_decide() -> None:
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    node, a, b = where_of(masked(lambda m: m[:, None, None].bool() & causal, IDS))
    assert node.output.shape == (2, 1, 3, 3) and b.shape == (1, 1, 1, 1)
    assert torch.equal(a[0, 0] == 0, causal)
    # A mask that its input does not change is a constant, and one that hides nothing is none.
    for function in (lambda m: m[:, None, None].bool() & False, lambda m: m.new_ones(3, 3).bool()):
        graph = masked(function, IDS)
        assert "where" not in ops(graph)
    assert graph.nodes[-1].inputs[3] is None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m: m.bool()[:, None, None] & m.bool()[:, None, :, None], "different elements"),
        (lambda m: m.flip(1)[:, None, None].bool(), "aten.flip"),
        (lambda m: m.bool()[:, torch.tensor([2, 1, 0])][:, None, None], "out of their order"),
        (lambda m: m.bool()[:1, None, None], "some elements"),
        (lambda m: m.cumsum(1)[:, None, None].bool(), "aten.cumsum"),
    ],
)
def test_other_masks_are_refused(function: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(UnsupportedOperators, match=reason):
        masked(function, IDS)


def test_views_of_what_a_reshape_cannot_split() -> None:
    x, y = Value("x", (6, 4)), Value("y", (4, 6))
    turn = Node("permute", "", [x], y, {"axes": [1, 0]})
    z = Value("z", (3, 8))
    again = Node("reshape", "", [y], z)
    producers = {y: turn, z: again}
    # 4 x 6 turned is cut in rows of 8: each holds one column of 6 and 2 of the next.
    assert view_of(z, producers).source is z and view_of(y, producers).source is x


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (12,), (1, 12, 1)])
def test_reshapes_across_dimensions_stay(shape: tuple[int, ...]) -> None:
    class Reshaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.reshape(shape)).transpose(0, -1).reshape(-1) + 1

    x = torch.randn(2, 6)
    engine = sparseinfer.compile(Reshaped().eval(), x, baselines=())
    assert torch.equal(engine(x), Reshaped()(x))
