"""What is measured of a model: the call, its inputs, and what its outputs are compared by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits that a model of the transformers library gives for keyword arguments."""
    logits: Tensor = model(**inputs).logits
    return logits


@dataclass(frozen=True)
class Workload:
    """A model with trained or random weights, and a call that somebody would really make."""

    model: nn.Module
    inputs: Inputs
    does: str
    """What one call computes, for the tables: "16 sentences of up to 26 tokens"."""
    trained: bool
    run: Callable[[nn.Module, Inputs], Tensor] = logits_of
    """The timed call. What it returns is compared; integers (tokens) have to be equal."""
    logits: Callable[[nn.Module, Inputs, Tensor], Tensor] | None = None
    """Where `run` returns integers: the floats behind them, given what the dense run returned."""
    examples: Any = None
    """The example inputs of the conversion; None: `inputs`."""
    kept: tuple[str, ...] = ()
    """Names of the layers that are not pruned: the first convolution, the classifier."""
    images: bool = False
    """Whether channels_last is a dense baseline worth measuring."""

    def outputs(self, model: nn.Module, inputs: Inputs, tokens: Tensor) -> Tensor:
        """Return the floats by which `model` is compared."""
        return (
            self.run(model, inputs) if self.logits is None else self.logits(model, inputs, tokens)
        )


def widened(inputs: Inputs) -> dict[str, Tensor]:
    """Return the inputs with floats in float64."""
    return {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}


def channels_last(workload: Workload) -> tuple[nn.Module, Inputs]:
    """Return a copy of the model and its images in torch's channels_last memory format."""
    form = torch.channels_last
    model = copy.deepcopy(workload.model).to(memory_format=form)  # type: ignore[call-overload]
    images = {
        key: x.contiguous(memory_format=form) if x.dim() == 4 else x
        for key, x in workload.inputs.items()
    }
    return model, images
