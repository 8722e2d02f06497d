"""Ours, torch eager and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparseinfer
from benchmarks.networks.definitions import NETWORKS, inputs_of
from benchmarks.networks.worker import ReadyNetwork
from benchmarks.peers.engines.interface import UnsupportedError

CALIBRATION = 8
"""Batches that ours takes the scales of int8 from, other ones than what is timed."""


def load(folder: Path, network: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model and its input, as the parent wrote them."""
    model = NETWORKS[network].make().eval()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return model, torch.from_numpy(np.load(folder / "x.npy", allow_pickle=False))


class Eager:
    """The model as it is, in inference mode."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def version(self) -> str:
        """torch's version."""
        return f"torch {torch.__version__}"

    def call_of(
        self, model: torch.nn.Module, x: torch.Tensor, network: str
    ) -> Callable[[], torch.Tensor]:
        """What is timed."""
        return lambda: model(x)

    def prepare(self, folder: Path, network: str) -> ReadyNetwork:
        """Build the call."""
        model, x = load(folder, network)
        run = self.call_of(model, x, network)

        @torch.inference_mode()
        def call() -> torch.Tensor:
            return run()

        return ReadyNetwork(call, lambda: call().numpy(), torch.get_num_threads())


class Compiled(Eager):
    """torch.compile in its default mode."""

    def call_of(
        self, model: torch.nn.Module, x: torch.Tensor, network: str
    ) -> Callable[[], torch.Tensor]:
        """Compile it, at its first call."""
        compiled = torch.compile(model, dynamic=False)
        return lambda: compiled(x)


class Ours(Eager):
    """The engine of `sparseinfer.compile`."""

    options: dict[str, Any] = {}  # noqa: RUF012

    def version(self) -> str:
        """The package's version."""
        return f"sparseinfer {sparseinfer.__version__}"

    def call_of(
        self, model: torch.nn.Module, x: torch.Tensor, network: str
    ) -> Callable[[], torch.Tensor]:
        """Compile the network.

        Raises:
            UnsupportedError: it is not built yet for these types.
        """
        options = dict(self.options)
        if options.get("weights") == "int8":
            options["calibration"] = [
                inputs_of(NETWORKS[network], len(x), 100 + index) for index in range(CALIBRATION)
            ]
        try:
            engine = sparseinfer.compile(
                model, x, threads=torch.get_num_threads(), baselines=(), **options
            )
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UnsupportedError(str(error).splitlines()[0]) from error
        return lambda: engine(x)


class OursBfloat16(Ours):
    """With bfloat16 weights and products."""

    options: dict[str, Any] = {"weights": "bfloat16", "activations": "bfloat16"}  # noqa: RUF012


class OursInt8(Ours):
    """With int8 weights, and bytes from layer to layer."""

    options: dict[str, Any] = {"weights": "int8", "activations": "int8"}  # noqa: RUF012
