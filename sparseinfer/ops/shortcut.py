"""Whether a call may skip torch's dispatcher, which costs a small layer as much as its kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled, forward_ad
from torch.nn import Parameter

__all__ = ["unobserved"]

_C = torch._C


def _bits(*keys: torch._C.DispatchKey) -> int:
    keyset = _C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        keyset = keyset.add(key)
    return keyset.raw_repr()


_Key = _C.DispatchKey
_UNUSUAL = ~_bits(_Key.CPU, _Key.AutogradCPU, _Key.ADInplaceOrView, _Key.AutocastCPU)
"""Dispatch keys that an ordinary tensor on the CPU lacks; an inference tensor has fewer yet."""
_WATCHED = ~_bits(_Key.BackendSelect, _Key.ADInplaceOrView)
"""Keys that a thread adds to every call only while a mode, transform or tracer is active."""

_keys = _C._dispatch_keys
_added_keys = _C._dispatch_tls_local_include_set
_function_modes = _C._len_torch_function_stack
_autocast = torch.is_autocast_enabled


def unobserved(x: Tensor, packed: Tensor, bias: Tensor | None) -> bool:
    """Whether the dispatcher would take these tensors straight to autograd and the CPU kernel.

    False for any tensor that is not an ordinary one on the CPU (subclasses, fake, meta, sparse,
    negated and `torch.func`'s wrapped tensors), and while a mode, a tracer, a transform, forward
    derivatives, autocast or the profiler has to see the call. Not for use under `torch.compile`.

    Example:
        >>> unobserved(torch.zeros(1), torch.zeros(1), None)
        True
    """
    return (
        type(x) is Tensor
        and not _keys(x).raw_repr() & _UNUSUAL
        and not _added_keys().raw_repr() & _WATCHED
        and not _function_modes()
        and not _autocast("cpu")
        and not _profiler_enabled()
        and forward_ad._current_level < 0
        and type(packed) is Tensor
        and packed.is_cpu
        and (bias is None or (type(bias) is Parameter and bias.is_cpu and not bias.is_neg()))
    )
