"""Converted models in both exporters of `torch.onnx`: onnxruntime computes what torch does."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from marks import some_slow
from torch import Tensor, nn

import sparseinfer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore")


def pruned(module: nn.Module, kept: float = 0.2) -> nn.Module:
    """`module` with zeros in every matrix."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand(parameter.shape, generator=generator) < kept
    return module.eval()


class First(nn.Module):
    """The first result of what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 8, bias=False)),
               (4, 64)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(16, 16, 4, padding="same", groups=2)), (2, 16, 20)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(16, 16, 3, 2, padding=(1, 0), dilation=(1, 2))),
               (2, 16, 13, 12)),
    "conv2d circular": (lambda: nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=(1, 2), padding_mode="circular")), (2, 16, 6, 7)),
    "conv1d reflect": (lambda: nn.Sequential(
        nn.Conv1d(16, 16, 3, padding=1, padding_mode="reflect")), (2, 16, 6)),
    "convtranspose1d": (lambda: nn.Sequential(nn.ConvTranspose1d(16, 8, 4, 2, 1)), (2, 16, 12)),
    "convtranspose2d": (lambda: nn.Sequential(
        nn.ConvTranspose2d(16, 8, 3, 2, output_padding=1, groups=2)), (2, 16, 6, 6)),
    "lstm": (lambda: First(nn.LSTM(16, 16, 2, bidirectional=True, batch_first=True)), (2, 5, 16)),
    "gru": (lambda: First(nn.GRU(16, 16)), (5, 2, 16)),
    "rnn": (lambda: First(nn.RNN(16, 16)), (5, 2, 16)),
    "attention": (lambda: Attention(), (2, 5, 32)),
    "encoder": (lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1), (2, 5, 32)),
}  # fmt: skip


QUICK = ("linear", "conv2d", "gru")
"""Torch's exporters take a second a model."""


def converted(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = KINDS[kind]
    model = pruned(build())
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    assert any(
        isinstance(
            module,
            sparseinfer.SparseLinear | sparseinfer.SparseConv1d | sparseinfer.SparseConv2d
            | sparseinfer.SparseConvTranspose1d | sparseinfer.SparseConvTranspose2d,
        )
        for module in sparse.modules()
    )  # fmt: skip
    return model, sparse, torch.randn(shape)


def exported(model: Any, x: Tensor, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, verbose=False, **options)
    return file.getvalue()


def run(file: bytes, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file)
    (name,) = [given.name for given in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def uint8_bytes(file: bytes) -> int:
    """Bytes of packed weights that the file holds."""
    tensors = onnx.load_from_string(file).graph.initializer
    return sum(len(t.raw_data) for t in tensors if t.data_type == onnx.TensorProto.UINT8)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("kind", some_slow(KINDS, *QUICK))
def test_both_exporters_write_what_torch_computes(kind: str, dynamo: bool) -> None:
    model, sparse, x = converted(kind)
    file = exported(sparse, x, dynamo=dynamo)
    assert uint8_bytes(file) == 0
    torch.testing.assert_close(run(file, x), model(x).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(sparse(x), sparse(x))  # it is called as before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", some_slow(sorted(set(KINDS) - {"lstm", "gru", "rnn"}), *QUICK))
def test_programs_of_torch_export_too(kind: str) -> None:
    model, sparse, x = converted(kind)
    program = torch.export.export(sparse, (x,))
    file = exported(program, x)
    torch.testing.assert_close(run(file, x), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind", some_slow(["linear", "conv2d", "convtranspose2d", "lstm", "attention"], *QUICK)
)
def test_sizes_may_be_left_open(kind: str) -> None:
    model, sparse, x = converted(kind)
    shapes = {0: torch.export.Dim("batch", min=1, max=64)}
    file = exported(sparse, x, dynamo=True, dynamic_shapes=(shapes,))
    more = torch.cat([x, x, x + 1.0])
    torch.testing.assert_close(run(file, more), model(more).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamo", [True, False])
def test_activations_of_a_kernel_are_exported(dynamo: bool) -> None:
    layers = [
        sparseinfer.SparseLinear.from_dense(pruned(nn.Linear(16, 16)), activation=name)
        for name in ("relu", "relu6", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
    ]
    model, x = nn.Sequential(*layers), torch.randn(2, 16)
    file = exported(model, x, dynamo=dynamo)
    torch.testing.assert_close(run(file, x), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamo", [True, False])
def test_half_precision_is_exported(dynamo: bool) -> None:
    _, sparse, x = converted("linear")
    sparse, x = sparse.half(), x.half()
    file = exported(sparse, x, dynamo=dynamo)
    torch.testing.assert_close(run(file, x), sparse(x).detach(), rtol=1e-2, atol=1e-2)


def test_without_the_optimizer_the_weights_are_dense_too() -> None:
    model, sparse, x = converted("linear")
    file = exported(sparse, x, dynamo=True, optimize=False)
    torch.testing.assert_close(run(file, x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_nothing_is_imported_for_it() -> None:
    code = """
import sys
import sparseinfer
packages = {name.partition(".")[0] for name in sys.modules}
print(sorted(packages & {"onnx", "onnxscript", "onnx_ir"}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
