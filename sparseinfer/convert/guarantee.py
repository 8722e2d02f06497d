"""Times the whole model, converted against dense, and takes layers back until it is not slower.

A layer that gains alone may lose in the model: its weights come from a slower cache there, and its
neighbours meet its output in another memory format. So the whole model has the last word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseinfer.convert.closes_over import holds_compiled
from sparseinfer.convert.fingerprint import choices_of, distinct, fingerprint, signature
from sparseinfer.convert.in_place import Put, Swaps, least, losing, time_in_place
from sparseinfer.convert.layer_report import DENSE, LayerReport
from sparseinfer.convert.model_report import Whole
from sparseinfer.convert.observe import Example, run_on
from sparseinfer.convert.platform import Platform
from sparseinfer.convert.plausible import beyond_layers
from sparseinfer.convert.replace import Replacement, lend, replace
from sparseinfer.convert.scan import evaluating
from sparseinfer.convert.state import Changes, random_state_kept
from sparseinfer.timing.measure import FEWEST, LOOKS, Comparison, weigh
from sparseinfer.timing.rounds import Sample, nothing
from sparseinfer.timing.tuning import ProblemKey, Tuner

__all__ = ["BASELINES", "TOLERANCE", "Guarantee"]

_log = logging.getLogger(__name__)

BASELINES = ("eager", "channels_last", "compile", "cuda_graph", "auto")

TOLERANCE = 0.02
"""Share of the dense time that the converted model may take more: equal models differ by as much
from one process to the next."""

CHECK_SHARE = 1 / 3
"""Share of the time left that one timing of the model may take; it ends once it is certain."""

DENSE_BUDGET_S = 0.05
"""Seconds to find how long the dense model takes at the least."""

MOST_VERSIONS = 64
"""Of one forward that torch.compile keeps while a subset of the layers is timed: dense and sparse,
with fixed and with dynamic shapes of each example."""


class Guarantee:
    """The dense model that a conversion has to beat, and the examples at which it has to.

    `baseline` is how the dense model is run: `eager`, as it is; `channels_last`, its weights and
    inputs in that memory format; `compile`, by `torch.compile`, and the converted one then too;
    `cuda_graph`, both as the replay of a CUDA graph; `auto`, the faster of the first two, which is
    measured.

    Example:
        >>> tuner = Tuner(1, torch.device("cpu"), threshold=1.05)
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> Guarantee(model, [((torch.zeros(1, 4),), {})], tuner, "eager", 1.05).required
        0.98
    """

    def __init__(
        self, model: nn.Module, examples: Sequence[Example], tuner: Tuner, baseline: str,
        min_speedup: float, changes: Changes | None = None,
        platform: Platform | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.changes = changes or Changes([])
        self.platform = platform or Platform()
        self.examples = distinct(examples)
        self.tuner = tuner
        self.required = min(1.0, min_speedup) * (1 - TOLERANCE)
        self._model_key = fingerprint(model)
        self._other: nn.Module | None = None
        self._tick: Callable[[], None] = nothing
        self._compiled: dict[nn.Module, Any] = {}
        self.compiles = baseline == "compile" or holds_compiled(model)
        self._moved: dict[int, Example] = {}
        if baseline in ("channels_last", "auto"):
            other: Any = replace(model, {})
            self._other = other.to(memory_format=torch.channels_last).eval()
            if self.changes:  # the copy has a state of its own, and examples of its own
                self._moved = {id(own): tree_map(_channels_last, own) for own, _ in self.examples}
                self.changes += run_on(other, list(self._moved.values()))
        self.baseline = self._faster_format() if baseline == "auto" else baseline

    def keep(
        self, swaps: dict[nn.Module, Replacement], layers: Mapping[nn.Module, LayerReport],
        tick: Callable[[], None] = nothing,
    ) -> Whole:  # fmt: skip
        """Take entries out of `swaps` until the model is not slower, the least useful first.

        It is not slower where at every example the lower bound of its speed-up reaches `required`.
        Layers that surely lose time inside the model go first, then half of the others at a time,
        those that save least. All go where only the noise of the machine is in the way, as fewer
        layers would be as hard to tell from none. `layers` are the reports of the modules in
        `swaps`; they tell what went. `tick` is called often, but never while something is timed.
        """
        self._tick = tick
        try:
            with self._every_version():
                return self._keep(swaps, layers)
        finally:
            self._start_compiling()

    def _keep(
        self, swaps: dict[nn.Module, Replacement], layers: Mapping[nn.Module, LayerReport]
    ) -> Whole:
        whole = Whole(self.baseline, TOLERANCE)
        in_place: dict[nn.Module, Comparison] = {}
        with self._undisturbed(), lend(self.model, swaps) as put:
            while swaps:
                self._start_compiling()
                seen = [self._check(put, swaps, layers, example) for example, _ in self.examples]
                shares = [share for _, share in self.examples]
                whole.take(weigh(list(zip(shares, seen, strict=True))))
                _log.debug("%d layers sparse: the model runs %.3fx", len(swaps), whole.speedup)
                worst = min(seen, key=lambda found: found.low)
                if worst.low >= self.required:
                    return whole
                verdict = f"with it the model ran {worst.speedup:.2f}x ({worst.low:.2f}x is sure)"
                back = {}
                if self.tuner.left_s <= 0:
                    back = {module: f"{verdict}, and the time was spent" for module in swaps}
                elif not in_place and self.baseline != "cuda_graph":  # a graph has no layers
                    in_place = self._in_place(put, swaps, layers)
                    back = losing(in_place)
                if not back and worst.speedup >= 1.0:
                    noise = "the machine's noise hides the gain; try again when it is quiet"
                    back = {module: f"{verdict}: {noise}" for module in swaps}
                back = back or least(layers, swaps, in_place, verdict)
                for module, why in back.items():
                    del swaps[module]
                    layers[module].format = DENSE
                    layers[module].reason += f"; taken back: {why}"
                    whole.reverted.append(layers[module].name)
        whole.sparse_ms = whole.speedup = whole.low = whole.high = None
        return whole

    def _check(
        self, put: Put, swaps: Swaps, layers: Mapping[nn.Module, LayerReport], example: Example
    ) -> Comparison:
        """The model as it was against the model with `swaps`, at one example."""
        args, kwargs = example
        current: Any = self.model
        graphs: dict[bool, Any] = {}

        def enter(replacements: Swaps) -> None:
            nonlocal current
            self._tick()
            module = put(replacements)
            if self.baseline != "cuda_graph":
                current = self._callable(module)
                return
            is_sparse = bool(replacements)
            if is_sparse not in graphs:
                call = partial(module, *args, **kwargs)
                graphs[is_sparse] = self.platform.capture(call, self.tuner.device)
            current = graphs[is_sparse]

        def call() -> object:
            return current(*args, **kwargs)

        choices = choices_of(layers[module] for module in swaps)
        dense = call
        if self.baseline == "channels_last":
            dense = self._call_other(example)
        return self.tuner.compare(
            self._problem([(example, 1.0)], self.baseline, choices),
            lambda: (dense, call),
            self._budget_s(),
            self.required,
            (lambda: enter({}), lambda: enter(swaps)),
            self._sample,
            implausible=lambda found: beyond_layers(
                found, [layers[module].speedup or 0.0 for module in swaps]
            ),
        )

    def _in_place(
        self, put: Put, swaps: Swaps, layers: Mapping[nn.Module, LayerReport]
    ) -> dict[nn.Module, Comparison]:
        """Each layer of `swaps` that the model calls, dense against sparse, over all examples."""
        choices = choices_of(layers[module] for module in swaps)
        problems = {
            module: {
                **self._problem(self.examples, self.baseline, choices),
                "label": f"in place {type(self.model).__name__} {layers[module].name}",
                "layer": layers[module].name,
            }
            for module in swaps
        }
        known = {module: self.tuner.recall(problem, 1.0) for module, problem in problems.items()}
        if None not in known.values():
            return {module: found for module, found in known.items() if found is not None}
        examples = [example for example, _ in self.examples]
        found = time_in_place(put, swaps, examples, self.tuner, self.changes.restore, self._tick)
        for module, comparison in found.items():
            self.tuner.keep(problems[module], comparison, threshold=1.0)
        return found

    def dense_ms(self) -> float:
        """Milliseconds of a pass of the dense model, the least of a few, over its examples."""
        clock = self.tuner.clock
        total = 0.0
        with self._undisturbed():
            for (args, kwargs), share in self.examples:
                seconds: list[float] = []
                end = clock.wall() + DENSE_BUDGET_S
                while len(seconds) < FEWEST or (clock.wall() < end and len(seconds) < LOOKS[-1]):
                    self.changes.restore()
                    self.tuner.synchronize()
                    start = clock.wall()
                    self.model(*args, **kwargs)
                    self.tuner.synchronize()
                    seconds.append(clock.wall() - start)
                total += share * min(seconds)
        return 1e3 * total

    def _faster_format(self) -> str:
        """The faster of `eager` and `channels_last`, by the lower bound of the latter's gain."""
        if all(parameter.dim() != 4 for parameter in self.model.parameters()):
            return "eager"
        with self._undisturbed():
            parts = [
                (
                    share,
                    self.tuner.compare(
                        self._problem([(example, 1.0)], "contiguous against channels_last", "none"),
                        lambda example=example: (  # type: ignore[misc]
                            lambda: self.model(*example[0], **example[1]),
                            self._call_other(example),
                        ),
                        self._budget_s(),
                        threshold=1.0,
                        sample=self._sample,
                    ),
                )
                for example, share in self.examples
            ]
        return "channels_last" if weigh(parts).low > 1.0 else "eager"

    @property
    def _sample(self) -> Sample | None:
        """What times a model whose calls change it or their inputs; None for any other."""
        return self._sample_restored if self.changes else None

    def _sample_restored(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of a call that meets what the first one met; to put that back is not counted."""
        spent = 0.0
        for _ in range(repeats):
            self.changes.restore()
            self.tuner.synchronize()
            start = self.tuner.clock.wall()
            call()
            self.tuner.synchronize()
            spent += self.tuner.clock.wall() - start
        self.changes.restore()
        return spent / repeats

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Evaluation mode; what the calls within change is put back before training flags are."""
        with evaluating(self.model), random_state_kept(self.model):
            try:
                yield
            finally:
                self.changes.restore()

    @contextmanager
    def _every_version(self) -> Iterator[None]:
        """Have torch compile what is timed as compiled, however often, or raise an error."""
        if not self.compiles:
            yield
            return
        import torch._dynamo  # torch imports it with the first torch.compile

        with torch._dynamo.config.patch(
            recompile_limit=MOST_VERSIONS, fail_on_recompile_limit_hit=True
        ):
            yield

    def _callable(self, module: nn.Module) -> Any:
        """`module` as it is called for the baseline."""
        if self.baseline != "compile":
            return module
        if module not in self._compiled:
            self._compiled[module] = torch.compile(module)
        return self._compiled[module]

    def _start_compiling(self) -> None:
        """Forget what was compiled for other layers, whose guards each call would go through.

        Torch keeps what it compiles by the code of a forward, eight versions of it, and runs the
        ninth as it is: with other layers in the model's places each subset is one.
        """
        if self.compiles:
            import torch._dynamo  # torch imports it with the first torch.compile

            self._compiled.clear()
            torch._dynamo.reset()

    def _call_other(self, example: Example) -> Callable[[], object]:
        """A call of the dense model in channels_last."""
        other = self._other
        assert other is not None
        args, kwargs = self._moved.get(id(example)) or tree_map(_channels_last, example)
        return lambda: other(*args, **kwargs)

    def _budget_s(self) -> float:
        return CHECK_SHARE * max(0.0, self.tuner.left_s) / len(self.examples)

    def _problem(
        self, examples: Sequence[tuple[Example, float]], baseline: str, choices: str
    ) -> ProblemKey:
        return {
            "label": f"model {type(self.model).__name__} {baseline}",
            "model": self._model_key,
            "baseline": baseline,
            "sparse": choices,
            "examples": [[*signature(example), share] for example, share in examples],
        }


def _channels_last(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.dim() == 4:
        return leaf.to(memory_format=torch.channels_last)
    return leaf
