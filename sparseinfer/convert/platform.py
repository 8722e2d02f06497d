"""What a conversion asks of the machine: its clocks, its caches, and whose kernels run where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseinfer.kernels import dispatch
from sparseinfer.timing import device_time
from sparseinfer.timing.clock import Clock
from sparseinfer.timing.device_time import EventTimer, GraphTimer
from sparseinfer.timing.rounds import Sample

__all__ = ["Platform"]


@dataclass(frozen=True)
class Platform:
    """The machine as it is: a conversion takes it as an argument, so that it can be made up.

    Example:
        >>> Platform().kernels_of(torch.device("cuda:1"))
        'cuda'
    """

    clock: Clock = field(default_factory=Clock)

    def kernels_of(self, device: torch.device) -> str:
        """Whose kernels run on a device: `cpu`, `cuda`, or what has none of ours."""
        return device.type

    def timer(self, device: torch.device, baseline: str) -> Sample | None:
        """What times the layers on a device: events, as an eager model meets them, or graphs.

        None: the clock.

        Example:
            >>> Platform().timer(torch.device("cpu"), "eager") is None
            True
        """
        if self.kernels_of(device) != "cuda":
            return None
        return GraphTimer(device) if baseline == "cuda_graph" else EventTimer(device)

    def cache_bytes(self, device: torch.device) -> int:
        """The size of the device's last cache."""
        return device_time.cache_bytes(device)

    def search_algorithm(
        self, packed: Tensor, op: str, dtype: torch.dtype, tokens: int, biased: bool
    ) -> None:
        """Have the row of a later call find out what it needs to know of the weight.

        Raises:
            RuntimeError: the row refuses the weight.
        """
        dispatch.search_algorithm(packed, op, dtype, tokens, biased)

    def capture(self, call: Callable[[], object], device: torch.device) -> Callable[..., object]:
        """The replay of a CUDA graph of a call."""
        return device_time.capture(call, device)
