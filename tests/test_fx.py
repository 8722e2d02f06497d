"""Converted models under `torch.fx`, its feature extraction, and `torch.export`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparseinfer


def converted(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand(parameter.shape, generator=generator) < 0.2
    return sparseinfer.convert_to_sparse(model.eval(), min_speedup=0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


KINDS = {
    "linear": (lambda: nn.Sequential(nn.Linear(32, 16), nn.ReLU()), (4, 32), "0"),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(8, 8, 3)), (2, 8, 20), "0"),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3)), (2, 8, 12, 12), "0"),
    "convtranspose1d": (lambda: nn.Sequential(nn.ConvTranspose1d(8, 8, 4, 2)), (2, 8, 12), "0"),
    "convtranspose2d": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 6, 3, 2)), (2, 8, 6, 6), "0"),
    "lstm": (lambda: Recurrent(nn.LSTM(16, 16)), (5, 2, 16), "layer"),
    "gru": (lambda: Recurrent(nn.GRU(16, 16)), (5, 2, 16), "layer"),
    "attention": (lambda: Attention(), (2, 5, 32), "attention"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_layer_is_one_node(kind: str) -> None:
    build, shape, name = KINDS[kind]
    sparse = converted(build())
    traced = torch.fx.symbolic_trace(sparse)
    assert ("call_module", name) in [(node.op, node.target) for node in traced.graph.nodes]
    x = torch.randn(shape)
    assert torch.equal(traced(x), sparse(x))
    # Another batch and number of steps: nothing of the example is in the graph.
    assert torch.equal(traced(torch.cat([x, x])), sparse(torch.cat([x, x])))


class Qualified(torch.fx.Tracer):
    """Names nodes by the module that they belong to, as torchvision's feature extraction does."""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            return forward(*args, **kwargs)
        return self.create_proxy("call_module", path, args, kwargs, name=path.replace(".", "_"))


def test_features_are_extracted_by_the_layers_name() -> None:
    sparse = converted(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 4)),
        )
    )
    graph = Qualified().trace(sparse)
    wanted = [node for node in graph.nodes if node.target in ("0.0", "1.1")]
    assert len(wanted) == 2
    (output,) = [node for node in graph.nodes if node.op == "output"]
    output.args = ({node.target: node for node in wanted},)
    features = torch.fx.GraphModule(sparse, graph)(torch.randn(2, 3, 6, 6))
    assert {name: tuple(y.shape) for name, y in features.items()} == {
        "0.0": (2, 8, 4, 4), "1.1": (2, 4)
    }  # fmt: skip


def test_hooks_are_not_run_twice() -> None:
    sparse = converted(nn.Sequential(nn.Linear(8, 8)))
    sparse[0].register_forward_hook(lambda module, args, y: y * 2.0)
    with pytest.raises(TypeError, match=r"expected 0 to have no hooks under torch\.fx"):
        torch.fx.symbolic_trace(sparse)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_is_exported(kind: str, strict: bool) -> None:
    build, shape, _ = KINDS[kind]
    sparse, x = converted(build()), torch.randn(shape)
    program = torch.export.export(sparse, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), sparse(x))
