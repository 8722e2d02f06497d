"""What a kernel reads besides the sections of a packed buffer: made on its device, once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Derived"]


class Derived:
    """Tensors made from one packed buffer, by name, for as long as they are asked for that buffer.

    A kernel's Meta holds one, and a `Handle` holds the Meta: a handle is left when its buffer was
    written to, and these go with it.

    Example:
        >>> derived, buffer = Derived(), torch.zeros(4)
        >>> made = derived.get(buffer, "ones", lambda: torch.ones(2))
        >>> made is derived.get(buffer, "ones", lambda: torch.ones(2))
        True
    """

    def __init__(self) -> None:
        # One tuple, replaced whole: two threads may ask at once.
        self._of: tuple[weakref.ref[Tensor] | None, dict[Hashable, Any]] = (None, {})

    def get(self, packed: Tensor, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make()` gave for `packed` under `name`: called at first, remembered after."""
        reference, made = self._of
        if reference is None or reference() is not packed:
            made = {}
            self._of = (weakref.ref(packed), made)
        if name not in made:
            with torch.inference_mode(False), torch.no_grad():
                value = make()
            if packed.is_cuda:
                # The next call may be on another stream, which waits for nothing of this one.
                torch.cuda.current_stream(packed.device).synchronize()
            made[name] = value
        return made[name]
