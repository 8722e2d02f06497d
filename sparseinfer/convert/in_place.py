"""Times the layers inside the model, dense against sparse, and says which of them to take back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from torch import nn

from sparseinfer.convert.layer_report import LayerReport
from sparseinfer.convert.observe import Example
from sparseinfer.convert.replace import Replacement
from sparseinfer.timing.clock import Watch
from sparseinfer.timing.measure import FEWEST, LOOKS, Comparison, conclude
from sparseinfer.timing.rounds import nothing, turns
from sparseinfer.timing.tuning import Tuner

__all__ = ["Put", "Swaps", "least", "losing", "time_in_place"]

Swaps = Mapping[nn.Module, Replacement]
Put = Callable[[Swaps], nn.Module]
"""Puts replacements in, see `sparseinfer.convert.replace.lend`."""

_Rounds = dict[nn.Module, list[tuple[float, float]]]

IN_PLACE_BUDGET_S = 3.0
"""Seconds to time the layers inside the model."""


def time_in_place(
    put: Put, swaps: Swaps, examples: Sequence[Example], tuner: Tuner,
    restore: Callable[[], object], tick: Callable[[], None] = nothing,
) -> dict[nn.Module, Comparison]:  # fmt: skip
    """Each layer of `swaps` that the model calls, dense against sparse, a pass over the examples.

    `restore` puts back what calls of the model change. `tick` is called between rounds.
    """
    rounds, interrupted = _rounds(put, swaps, examples, tuner, restore, tick)
    return {
        module: conclude(rounds[module], interrupted[module])
        for module in swaps
        if rounds[module] or interrupted[module]
    }


def _rounds(
    put: Put, swaps: Swaps, examples: Sequence[Example], tuner: Tuner,
    restore: Callable[[], object], tick: Callable[[], None],
) -> tuple[_Rounds, _Rounds]:  # fmt: skip
    """Seconds that each layer takes a pass over the examples, dense and sparse, by rounds.

    Those in which others had the processor are apart, the second of the two.
    """
    clock = tuner.clock
    spent: dict[nn.Module, float] = {}
    since: dict[nn.Module, float] = {}

    def start(module: nn.Module, args: object) -> None:
        tuner.synchronize()
        since[module] = clock.wall()

    def stop(module: nn.Module, args: object, output: object) -> None:
        tuner.synchronize()
        spent[module] = spent.get(module, 0.0) + clock.wall() - since[module]

    def run(replacements: Swaps) -> None:
        current = put(replacements)
        for args, kwargs in examples:
            restore()
            current(*args, **kwargs)

    def interrupts(replacements: Swaps) -> bool:
        return watch.run(partial(run, replacements))[1]

    order = turns({"dense": partial(interrupts, {}), "sparse": partial(interrupts, swaps)})
    rounds: _Rounds = {module: [] for module in swaps}
    interrupted: _Rounds = {module: [] for module in swaps}
    end = clock.wall() + min(IN_PLACE_BUDGET_S, tuner.left_s)
    with ExitStack() as stack:
        for module in (*swaps, *swaps.values()):
            for handle in (
                module.register_forward_pre_hook(start),
                module.register_forward_hook(stop),
            ):
                stack.callback(handle.remove)
        for turn in range(LOOKS[-1] + 1):
            tick()
            spent.clear()
            watch = Watch(clock)
            disturbed = any(next(order).values())
            if turn == 0:  # the first one warms up
                continue
            if tuner.device.type == "cpu":
                tuner.watch.add(watch)
            else:  # the thread waits for the device there
                disturbed = False
            for module, sparse in swaps.items():
                # A model may choose among its layers anew at every call.
                if module in spent and sparse in spent:
                    seconds = spent[module], spent[sparse]
                    (interrupted if disturbed else rounds)[module].append(seconds)
            if turn >= FEWEST and clock.wall() > end:
                break
    return rounds, interrupted


def losing(in_place: Mapping[nn.Module, Comparison]) -> dict[nn.Module, str]:
    """The layers that surely lose time inside the model, the worst first."""
    return {
        module: f"inside the model it takes {found.sparse_ms:.3g} ms, {found.dense_ms:.3g} ms dense"
        for module, found in sorted(in_place.items(), key=lambda item: item[1].speedup)
        if found.high < 1.0
    }


def least(
    layers: Mapping[nn.Module, LayerReport], swaps: Iterable[nn.Module],
    in_place: Mapping[nn.Module, Comparison], verdict: str,
) -> dict[nn.Module, str]:  # fmt: skip
    """The half of the layers that save least inside the model, the least first.

    What the projections of an attention save there is not seen, as torch calls no layer for them:
    what they save alone stands in.
    """
    saved = dict.fromkeys(swaps, 0.0)
    for module in saved:
        found = in_place.get(module) or layers[module]
        saved[module] = (found.dense_ms or 0.0) - (found.sparse_ms or 0.0)
    ordered = sorted(saved, key=lambda module: saved[module])
    return {
        module: f"{verdict}, and it saves only {saved[module]:.3g} ms there"
        for module in ordered[: (len(ordered) + 1) // 2]
    }
