"""The scale of a sparse layer's input, where its int8 weight multiplies calibrated activations."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseinfer.quantize.activations import ActivationScale

__all__ = ["DENSE_KERNEL", "NAMES", "QuantizedInput", "no_kernel"]

NAMES = ("input_scale", "input_zero_point")
"""Buffers, a float32 and an int32 without dimensions, of a layer that has a calibrated scale.

Without one there are none: torch.export counts a buffer that is None as one that has a value."""


DENSE_KERNEL = "dense_kernel"
"""Buffer of a linear layer whose int8 weight torch's dense kernel multiplies: a uint8 that is 1."""


class QuantizedInput(nn.Module):
    """A layer that may hold the scale of its input, in its state_dict where it does.

    Example:
        >>> layer = QuantizedInput()
        >>> layer.set_activation_scale(ActivationScale(0.5, 3))
        >>> layer.state_dict()["input_zero_point"], layer.activation_scale
        (tensor(3, dtype=torch.int32), ActivationScale(scale=0.5, zero_point=3))
    """

    takes_int8: ClassVar[bool] = False
    """Whether there are kernels for an int8 weight of this class."""
    dense_int8: ClassVar[bool] = False
    """Whether torch's dense kernel may multiply an int8 weight of this class."""
    handle: Any

    def round_input(self, scale: ActivationScale | None) -> None:
        """Take the scale of the input over, after checks that the weight and the kernels fit.

        Raises:
            ValueError: the class has no kernel for int8 weights, or the weight is no int8 one.
        """
        narrow = self.handle.info["value_type"] == "int8"
        if narrow and not self.takes_int8:
            raise no_kernel(type(self), "int8")
        if scale is not None and not narrow:
            raise ValueError(
                "expected an input_scale for int8 weights alone, got one for "
                f"{self.handle.info['value_type']}; try weights='int8'"
            )
        self.set_activation_scale(scale)

    @property
    def activation_scale(self) -> ActivationScale | None:
        """The scale and zero point of the input; None where they are found at every call."""
        scale, zero_point = (self._buffers.get(name) for name in NAMES)
        if scale is None or zero_point is None:
            return None
        return ActivationScale(float(scale), int(zero_point))

    def set_activation_scale(self, scale: ActivationScale | None) -> None:
        """Round the input by this scale from now on; None: by its own range, at every call.

        Raises:
            TypeError: it is no `ActivationScale`.
        """
        if scale is None:
            for name in NAMES:
                self._buffers.pop(name, None)
            return
        if not isinstance(scale, ActivationScale):
            raise TypeError(
                f"expected an ActivationScale, got {type(scale).__name__}; try "
                "ActivationScale(scale, zero_point) of sparseinfer.quantize"
            )
        values = (
            torch.tensor(scale.scale, dtype=torch.float32, device="cpu"),
            torch.tensor(scale.zero_point, dtype=torch.int32, device="cpu"),
        )
        for name, value in zip(NAMES, values, strict=True):
            self.register_buffer(name, value)

    @property
    def runs_dense(self) -> bool:
        """Whether torch's dense kernel multiplies the int8 weight."""
        return DENSE_KERNEL in self._buffers

    def run_dense(self, dense: bool = True) -> None:
        """Have torch's dense kernel multiply the int8 weight from now on, or ours again.

        The packed weight stays what the layer holds; beside it torch keeps a byte for each element.
        Without a calibrated scale the input is rounded by the range of all of it then.

        Raises:
            ValueError: the layer is no linear one, or its weight no int8 one.
        """
        self._buffers.pop(DENSE_KERNEL, None)
        if not dense:
            return
        if not self.dense_int8 or not self.handle.is_int8:
            raise ValueError(
                f"expected a linear layer with an int8 weight, got {type(self).__name__} with "
                f"{self.handle.info['value_type']}; try SparseLinear.from_dense(layer, "
                "weights='int8')"
            )
        self.mark_dense()

    def mark_dense(self) -> None:
        """`run_dense` without a look at the weight, which may be yet to come."""
        self.register_buffer(DENSE_KERNEL, torch.ones((), dtype=torch.uint8, device="cpu"))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A move to a narrower type would round the scale, which the integers depend on.
        kept = self._buffers.get(NAMES[0])
        super()._apply(fn, recurse)
        moved = self._buffers.get(NAMES[0])
        if kept is not None and moved is not None and moved.dtype is not torch.float32:
            self._buffers[NAMES[0]] = kept.to(moved.device)
        return self

    def make_room(self, entries: dict[str, Any], prefix: str, errors: list[str]) -> None:
        """Hold a scale where the state_dict `entries` has one, and none where it has none.

        What is wrong with it is added to `errors`, and it is taken out.
        """
        self._take_kernel(entries, prefix, errors)
        keys = [f"{prefix}{name}" for name in NAMES]
        found = [entries.pop(key, None) for key in keys]
        try:
            if any(value is not None for value in found):
                self.set_activation_scale(_read(found))
            elif f"{prefix}packed" in entries:
                self.set_activation_scale(None)
            # With a dense weight the input stays what it was.
        except (TypeError, ValueError) as invalid:
            errors.append(f"While loading {prefix}{NAMES[0]}: {invalid}")
        for key, name in zip(keys, NAMES, strict=True):
            held = self._buffers.get(name)
            if held is not None:
                entries[key] = held.clone()

    def _take_kernel(self, entries: dict[str, Any], prefix: str, errors: list[str]) -> None:
        """Hold the mark of torch's dense kernel where the state_dict has one, else none."""
        mark = entries.pop(f"{prefix}{DENSE_KERNEL}", None)
        if f"{prefix}packed" not in entries:
            mark = self._buffers.get(DENSE_KERNEL)  # with a dense weight the kernel stays
        self._buffers.pop(DENSE_KERNEL, None)
        if mark is None:
            return
        if not self.dense_int8 or not isinstance(mark, Tensor) or mark.numel() != 1:
            errors.append(
                f"While loading {prefix}{DENSE_KERNEL}: expected a tensor of one element, of a "
                f"linear layer, got {type(mark).__name__} for {type(self).__name__}; try the "
                "state_dict of a converted model"
            )
            return
        self.mark_dense()
        entries[f"{prefix}{DENSE_KERNEL}"] = torch.ones((), dtype=torch.uint8, device="cpu")


def no_kernel(layer: type[nn.Module], activations: str) -> ValueError:
    """The error of a class of layers for a weight that multiplies activations of this type.

    Example:
        >>> str(no_kernel(nn.LSTM, "int8")).split(", ")[0]
        "expected activations='float32' for LSTM"
    """
    return ValueError(
        f"expected activations='float32' for {layer.__name__}, got {activations!r}, which it has "
        "no kernel for; try weights='float32'"
    )


def _read(found: list[Any]) -> ActivationScale:
    for name, value in zip(NAMES, found, strict=True):
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"expected {name} as a tensor of one element, got {got}; try the state_dict of a "
                "converted model"
            )
    return ActivationScale(float(found[0]), int(found[1]))
