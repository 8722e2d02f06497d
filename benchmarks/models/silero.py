"""silero-vad: is somebody speaking? Convolutions over a spectrum and an LSTM, trained.

The package carries a TorchScript archive, which convert_to_sparse cannot change, and weights of
another training of the same network as safetensors, for 16 kHz. The network is written down here
and those are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.packages import package_file, require
from benchmarks.models.workload import Inputs, Workload

PIP = "pip install silero-vad"

RATE = 16000
CHUNK = 512
"""Samples that the network decides on at once: 32 ms."""
CONTEXT = 64
"""Samples before the chunk that it sees too."""
BINS = 129
"""Frequencies of the spectrum."""


class SileroVAD(nn.Module):
    """Probability of speech in every chunk of 32 ms, at 16 kHz.

    forward: x[B, T, 576], T chunks in a row with the 64 samples before each, and the LSTM's state
    (h, c), each [1, B, 128], or None at the start. Returns the probabilities [B, T] and the state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 2 * BINS, 256, stride=128, bias=False)
        self.encoder = nn.Sequential(
            nn.Conv1d(BINS, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(128, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(64, 128, 3, padding=1),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.head = nn.Conv1d(128, 1, 1)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return probabilities and the state, see the class."""
        batch, chunks, _ = x.shape
        frames = F.pad(x.flatten(0, 1).unsqueeze(1), (0, 64), mode="reflect")
        real, imaginary = self.spectrum(frames).split(BINS, dim=1)
        features = self.encoder((real.square() + imaginary.square()).sqrt())
        hidden, state = self.lstm(features.view(batch, chunks, 128), state)
        speech = self.head(hidden.relu().transpose(1, 2)).sigmoid()
        return speech.squeeze(1), state


# Names of the package's weights, and what they are called here.
NAMES = {
    "stft_conv": "spectrum",
    "conv1": "encoder.0",
    "conv2": "encoder.2",
    "conv3": "encoder.4",
    "conv4": "encoder.6",
    "final_conv": "head",
}


def build(weights: Mapping[str, Tensor]) -> SileroVAD:
    """Return the network with weights given by the names in the package's safetensors file."""
    state = {}
    for name, value in weights.items():
        layer, key = name.rsplit(".", 1)
        state[f"lstm.{key}_l0" if layer == "lstm_cell" else f"{NAMES[layer]}.{key}"] = value
    model = SileroVAD()
    model.load_state_dict(state)
    return model.eval()


def load() -> SileroVAD:
    """Return the trained network.

    Raises:
        MissingPackageError: a package is not installed.
    """
    require("safetensors", pip="pip install safetensors")
    from safetensors.torch import load_file

    return build(
        load_file(package_file("silero_vad", "data", "silero_vad_16k.safetensors", pip=PIP))
    )


def voice_like(seconds: float) -> Tensor:
    """Return a made-up signal [samples]: a hoarse, gliding tone with overtones that comes and goes.

    It is heard as speech in places and as noise in others, so that the probabilities differ.
    """
    time = torch.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 40 * torch.sin(2 * math.pi * 0.7 * time)
    phase = 2 * math.pi * torch.cumsum(pitch, 0) / RATE
    formant = 1 + torch.sin(2 * math.pi * 3.1 * time)
    overtones = torch.stack(
        [torch.sin(n * phase) / (1 + (n - 5 * formant) ** 2) for n in range(1, 25)]
    )
    loudness = 0.3 * torch.sin(2 * math.pi * 0.4 * time).clamp(min=0)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return loudness * overtones.sum(0) + 0.003 * noise


def chunked(signal: Tensor) -> Tensor:
    """Cut a signal [samples] into the network's chunks [1, T, 576]; a rest is left out."""
    return F.pad(signal, (CONTEXT, 0)).unfold(0, CONTEXT + CHUNK, CHUNK).unsqueeze(0).contiguous()


def detect(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the probabilities [B, T] of speech."""
    speech: Tensor = model(inputs["x"])[0]
    return speech


def recording() -> Workload:
    """Ten seconds in one call, as a file is cut into utterances."""
    x = chunked(voice_like(10.0))
    kept = ("spectrum", "head")
    return Workload(load(), {"x": x}, "10 s of sound", trained=True, run=detect, kept=kept)


def stream() -> Workload:
    """One chunk, as a telephone call is listened to: 32 ms of sound a call."""
    x = chunked(voice_like(10.0))[:, 50:51]
    kept = ("spectrum", "head")
    return Workload(load(), {"x": x}, "32 ms of sound", trained=True, run=detect, kept=kept)
