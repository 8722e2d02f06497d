"""Shows by calls of a model that its sparse layers run, and which of them fail."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import nn

from sparseinfer.convert.closes_over import holders
from sparseinfer.convert.observe import Example, Observation, run_on
from sparseinfer.convert.replace import Replacement, lend
from sparseinfer.convert.scan import brief
from sparseinfer.layers.projections import called

__all__ = ["Proof", "check_copy", "prove", "unproven"]

_MOST_NAMES = 3


@dataclass
class Proof:
    """What calls of a model ran: the modules called to the end, those that raised, and how."""

    ran: set[nn.Module] = field(default_factory=set)
    raised: dict[nn.Module, str] = field(default_factory=dict)
    error: Exception | None = None


def prove(model: nn.Module, watched: Iterable[nn.Module], examples: Sequence[Example]) -> Proof:
    """Call `model` on every example and note which of `watched` run, wherever they belong.

    The model and the examples are as before afterwards. Where a call raises an exception, the
    modules that it was in are told, the innermost first, and no further example is tried.

    Example:
        >>> model, other = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
        >>> import torch
        >>> found = prove(model, [model[0], other], [((torch.zeros(1, 2),), {})])
        >>> model[0] in found.ran, other in found.ran, found.error
        (True, False, None)
    """
    found = Proof()
    entered: list[nn.Module] = []

    def enter(module: nn.Module, _: object) -> None:
        entered.append(module)

    def leave(module: nn.Module, *_: object) -> None:
        found.ran.add(module)
        while entered and entered.pop() is not module:
            pass

    with ExitStack() as stack:
        for module in _called(watched):
            for handle in (
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            ):
                stack.callback(handle.remove)
        try:
            run_on(model, examples)
        except Exception as error:
            found.error = error
            found.raised = dict.fromkeys(reversed(entered), brief(error))
    return found


def _called(watched: Iterable[nn.Module]) -> Collection[nn.Module]:
    """The modules to hook: of a projection its attention, as torch calls no layer for it."""
    return {called(module): None for module in watched}


def unproven(
    model: nn.Module, swaps: Mapping[nn.Module, Replacement], seen: Observation,
    examples: Sequence[Example],
) -> dict[nn.Module, str]:  # fmt: skip
    """Which of `swaps`, put into `model`, do not run in it though the dense ones did, and why.

    Where a call raises an exception that no layer is to blame for, that is all of them.

    Example:
        >>> unproven(nn.Sequential(), {}, Observation({}, 1), [])
        {}
    """
    back: dict[nn.Module, str] = {}
    with lend(model, swaps) as put:
        while len(back) < len(swaps):
            left = {dense: sparse for dense, sparse in swaps.items() if dense not in back}
            found = prove(put(left), left.values(), examples)
            if found.error is None:
                return back | {dense: UNREACHED for dense in _missed(left, seen, found)}
            blamed = next((sparse for sparse in found.raised if sparse in left.values()), None)
            said = f"with it a call of the model raised {brief(found.error)}"
            back |= {dense: said for dense, sparse in left.items() if blamed in (None, sparse)}
    return back


def check_copy(
    result: nn.Module, model: nn.Module, swaps: Mapping[nn.Module, Replacement],
    seen: Observation | None, examples: Sequence[Example],
) -> dict[nn.Module, str]:  # fmt: skip
    """Which of `swaps` do not run in `result`, the copy of `model` that has them, and why.

    Without an observation nothing is called, and only what the copy holds is looked at.

    Raises:
        TypeError: the copy runs layers of the original.

    Example:
        >>> check_copy(nn.Identity(), nn.Identity(), {}, None, [])
        {}
    """
    inside = set(result.modules())
    lost = [dense for dense, sparse in swaps.items() if sparse not in inside]
    if lost or not swaps:  # the model has a way of its own to be copied
        return dict.fromkeys(lost, UNREACHED)
    kept = holders(result, set(model.modules()) - inside)
    missed: dict[nn.Module, str] = {}
    if seen is not None:
        found = prove(result, (*swaps.values(), *swaps), examples)
        originals = [
            dense for dense in swaps
            if called(dense) in found.ran
        ]  # fmt: skip
        missed = {dense: UNREACHED for dense in _missed(swaps, seen, found)}
        if found.error is not None:
            missed = dict.fromkeys(swaps, f"the copy of the model raised {brief(found.error)}")
        if not originals:
            return missed
    elif not kept:
        return {}
    named = ", ".join(kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
    where = f"whose {named} holds the original's" if named else "that runs the original's"
    raise TypeError(
        f"expected a model whose copy runs layers of its own, got one {where}, so that nothing "
        "would run sparse; try inplace=True, or convert_to_sparse before torch.compile or any "
        "other wrapping"
    )


UNREACHED = "a call of the converted model does not run it"


def _missed(
    swaps: Mapping[nn.Module, Replacement], seen: Observation, found: Proof
) -> list[nn.Module]:
    return [
        dense for dense, sparse in swaps.items() if seen.inputs[dense] and sparse not in found.ran
    ]
