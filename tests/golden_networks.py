"""Networks whose outputs every processor has to give: of small inputs, pruned, trained where the
packages that carry their weights are installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from networks import mobilenet_v2, prune, simple_cnn
from torch import Tensor, nn

from benchmarks.models import minilm, silero
from benchmarks.models.packages import MissingPackageError

__all__ = ["GOLDEN"]


class SileroEncoder(nn.Module):
    """silero-vad up to its LSTM: magnitudes of a spectrum, and convolutions over them."""

    def __init__(self, whole: silero.SileroVAD) -> None:
        super().__init__()
        self.spectrum, self.encoder = whole.spectrum, whole.encoder

    def forward(self, samples: Tensor) -> Tensor:
        real, imaginary = self.spectrum(samples).split(silero.BINS, dim=1)
        features: Tensor = self.encoder((real.square() + imaginary.square()).sqrt())
        return features


def silero_encoder() -> tuple[nn.Module, Tensor]:
    try:
        whole = silero.load()
    except MissingPackageError:
        whole = silero.SileroVAD()
    time = torch.arange(640) / silero.RATE
    tones = sum(torch.sin(2 * math.pi * hertz * time) / hertz for hertz in (130, 260, 1040))
    samples = 20 * torch.as_tensor(tones) + 0.01 * torch.randn(640)
    return SileroEncoder(whole), samples.view(1, 1, 640)


def minilm_layer() -> tuple[nn.Module, Tensor]:
    """A layer of all-MiniLM-L6-v2, on hidden states of 16 tokens."""
    layer = nn.TransformerEncoderLayer(
        384, 12, 1536, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True
    )
    try:
        trained = minilm.load().encoder.layer[0].state_dict()
    except MissingPackageError:
        return layer, torch.randn(1, 16, 384)
    state = {}
    for kind in ("weight", "bias"):
        projections = [
            trained[f"attention.self.{part}.{kind}"] for part in ("query", "key", "value")
        ]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(projections)
        for ours, theirs in (
            ("self_attn.out_proj", "attention.output.dense"),
            ("norm1", "attention.output.LayerNorm"), ("linear1", "intermediate.dense"),
            ("linear2", "output.dense"), ("norm2", "output.LayerNorm"),
        ):  # fmt: skip
            state[f"{ours}.{kind}"] = trained[f"{theirs}.{kind}"]
    layer.load_state_dict(state)
    return layer, torch.randn(1, 16, 384)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "simple_cnn": lambda: (simple_cnn(), torch.randn(1, 3, 32, 32)),
    "mobilenet_v2": lambda: (mobilenet_v2(0.35), torch.randn(1, 3, 64, 64)),
    "minilm_layer": minilm_layer,
    "silero_encoder": silero_encoder,
}


def _pruned(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = make()
    prune(model, 0.8)
    return model.eval(), x


GOLDEN: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    name: lambda make=make: _pruned(make) for name, make in NETWORKS.items()
}
"""By name, what makes a network and its input."""
