"""The plans of an engine: one a batch, made when it is first called with it, and kept."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn

from sparseinfer.native import Model, Plan, Torch

__all__ = ["MOST_PLANS", "BatchPlan", "Plans"]

MOST_PLANS = 8
"""That one engine keeps: those of the batches that it was called with last."""

_TORCH = Torch(Tensor, nn.Parameter, torch.float32, torch.strided, torch.empty_like)


@dataclass(frozen=True)
class BatchPlan:
    """A model at one batch, and what runs it; `templates` have the shapes of its outputs."""

    model: Model
    native: Plan
    templates: tuple[Tensor, ...]


class Plans:
    """The plans of a model file. `latest` is the one of the last call that asked for a batch."""

    def __init__(self, model: Model, threads: int) -> None:
        self._model, self._threads = model, threads
        self._kept: dict[int, BatchPlan] = {}
        self._lock = Lock()
        self.latest = self.at(model.batch)

    def __contains__(self, batch: int) -> bool:
        return batch in self._kept

    def at(self, batch: int) -> BatchPlan:
        """The plan of a batch, of which no other is made while it is kept.

        Raises:
            ValueError: the model cannot run that batch.
        """
        with self._lock:
            plan = self._kept.pop(batch, None) or self._made(batch)
            self._kept[batch] = plan
            if len(self._kept) > MOST_PLANS:
                del self._kept[next(iter(self._kept))]
            self.latest = plan
            return plan

    def _made(self, batch: int) -> BatchPlan:
        own = self._model
        model = own if batch == own.batch else own.at_batch(batch)
        shapes = tuple(torch.Size(tensor["shape"]) for tensor in model.inputs)
        templates = tuple(
            torch.empty(tensor["shape"], dtype=torch.float32, device="cpu")
            for tensor in model.outputs
        )
        return BatchPlan(model, Plan(model, self._threads, shapes, templates, _TORCH), templates)
