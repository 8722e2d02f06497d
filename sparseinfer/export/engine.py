"""A compiled network: what a user calls, saves, loads and looks into."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparseinfer.export.drawing import draw
from sparseinfer.export.facts import EngineFacts, facts_of
from sparseinfer.export.plans import BatchPlan, Plans
from sparseinfer.export.profile import Profile, profile_of
from sparseinfer.export.report import EngineReport, Race
from sparseinfer.export.signature import Signature
from sparseinfer.files import write_bytes, write_text
from sparseinfer.native import Model

if TYPE_CHECKING:
    from sparseinfer.export.comparison import NodeComparison

__all__ = ["Engine", "load_engine"]

CASTS = {
    "float32": (torch.float32, ".float()"), "int64": (torch.int64, ".long()"),
    "bool": (torch.bool, ".bool()"),
}  # fmt: skip
"""What inputs are, and how other tensors become so."""


class Engine:
    """A network as one plan, called as the model that it was made of.

    It never changes, and any number of threads may call it at once: each call runs in a context of
    its own, which is kept for later ones. Where its batch may vary, the first call with a batch
    plans for it, and the plans of the last eight batches are kept. It is made by
    `sparseinfer.compile` or `load_engine`.

    Example:
        >>> import sparseinfer
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()).eval()
        >>> engine = sparseinfer.compile(model, torch.zeros(2, 8))
        >>> engine(torch.ones(2, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, file: Tensor, threads: int, races: Sequence[Race] = (), error: str = ""
    ) -> None:
        self._file = file
        self._model = Model(file.data_ptr(), len(file), threads)
        self._inputs = self._model.inputs
        self._shapes = [torch.Size(tensor["shape"]) for tensor in self._inputs]
        self._batched = [tensor["per_batch"] != 0 for tensor in self._inputs]
        self._signature = Signature.from_json(self._model.metadata, len(self._model.outputs))
        if len(self._signature.tensors) != len(self._inputs):
            raise ValueError(
                f"expected a signature of {len(self._inputs)} tensors, got "
                f"{len(self._signature.tensors)}; try exporting the model again"
            )
        self.threads = threads
        self._races, self._error = list(races), error
        self._plans = Plans(self._model, threads)
        # A call of so many positional arguments is one of tensors alone, in order.
        self._plain = self._signature.plain_count()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on tensors of the shapes that it was compiled for.

        Raises:
            TypeError: arguments are missing, or there are some that the model does not take, or one
                is not a tensor of its type on the CPU.
            ValueError: a tensor has another shape than the example, or a batch that is 0, larger
                than it may be or not that of another tensor; another argument is not what it was,
                or an id is one that the model has not.
        """
        if not kwargs and len(args) == self._plain:
            # None where a tensor is to be looked at: of another batch, laid out otherwise, refused.
            found = self._plans.latest.native.call(args) or self._called_at_another_batch(args)
            if found:
                return self._signature.give(found)
        outputs, _ = self._run(self._signature.bind(args, kwargs), False)
        return self._signature.give(outputs)

    def report(self) -> EngineReport:
        """What the engine is: its nodes, its memory, and how it ran against the model."""
        return EngineReport(
            self._model.nodes, len(self._file), self._model.arena_bytes, self.threads,
            list(self._races), self._error, self.most_batch,
        )  # fmt: skip

    def profile(self, inputs: Any, repeats: int = 20) -> Profile:
        """Run `repeats` times and tell the least time of each node.

        `inputs` is a tensor, a tuple of positional arguments or a dict of keyword arguments.

        Raises:
            TypeError, ValueError: as a call.
            ValueError: repeats is less than 1.
        """
        if repeats < 1:
            raise ValueError(f"expected repeats >= 1, got {repeats}; try 20")
        tensors = self._signature.bind(*_arguments(inputs))
        plan = self._plan_of(self._taken(tensors))
        seconds = [self._run(tensors, True)[1] for _ in range(repeats)]
        return profile_of(plan.model.nodes, seconds)

    @property
    def inputs(self) -> list[tuple[str, tuple[int, ...]]]:
        """The name and shape of each tensor that a call takes, in order."""
        names = self._signature.tensors
        return [(name, tuple(shape)) for name, shape in zip(names, self._shapes, strict=True)]

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators of its nodes, as SPARSEINFER_OPERATORS of a C library names them.

        Example:
            >>> import sparseinfer, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Softmax(-1)).eval()
            >>> sparseinfer.compile(model, torch.zeros(2, 8), baselines=()).operators
            ('linear', 'softmax')
        """
        return self.facts().operators

    @property
    def most_batch(self) -> int:
        """The largest batch that a call may have; 0 where it is the example's."""
        return self._model.most_batch

    def takes(self, name: str, shape: Sequence[int]) -> bool:
        """Whether the tensor of that name may have that shape.

        Raises:
            KeyError: there is no such tensor.
        """
        at = {own: index for index, own in enumerate(self._signature.tensors)}[name]
        return self._fits(at, torch.Size(shape))

    @property
    def fixed(self) -> dict[str, Any]:
        """The other arguments of a call, which are as they were in the example."""
        return dict(self._signature.fixed)

    def facts(self) -> EngineFacts:
        """What the file holds: its nodes, its tensors, and the exact bytes of everything."""
        return facts_of(self._model, len(self._file))

    def selftest(self) -> float:
        """Run the inputs that the file carries, and compare with the outputs that it carries.

        Returns the largest difference, as a share of what is allowed. `sparseinfer.compile(...,
        golden=True)` puts them into the file.

        Raises:
            RuntimeError: the file has none, or an output differs by more than is allowed.
        """
        return self._plans.at(self._model.batch).native.selftest()

    def compare(
        self, model: nn.Module | ExportedProgram | Any, inputs: Any, tolerance: float | None = None
    ) -> NodeComparison:
        """Compare what every node computes with what its model does, to find where they part.

        `model` is the one that the engine was compiled from, `inputs` as for `profile`. Printed, it
        names the first node that is further from the model in float64 than `tolerance`, a share of
        the largest element; None: than torch's own rounding explains. An ONNX model's values are
        those of ONNX Runtime or, without it, of onnx's ReferenceEvaluator.

        Raises:
            TypeError, ValueError: as `sparseinfer.compile`, or as a call.

        Example:
            >>> import sparseinfer
            >>> model = nn.Sequential(nn.Linear(8, 4), nn.Tanh()).eval()
            >>> engine = sparseinfer.compile(model, torch.zeros(2, 8), baselines=())
            >>> print(engine.compare(model, torch.ones(2, 8)).first)
            None
        """
        # It compiles the model again, and so stands above engines.
        from sparseinfer.export.comparison import compare_nodes

        args, kwargs = _arguments(inputs)
        tensors = self._signature.bind(args, kwargs)
        own = self._taken(tensors)
        plan = self._plan_of(own)
        outputs = [torch.empty_like(y) for y in plan.templates]
        seen = plan.native.watch([x.data_ptr() for x in own], [y.data_ptr() for y in outputs])
        nodes, all_tensors = plan.model.nodes, plan.model.tensors
        return compare_nodes(nodes, all_tensors, seen, model, args, kwargs, tolerance)

    def draw(self, path: str | os.PathLike[str], profile: Profile | None = None) -> None:
        """Draw the graph as an SVG file: a box a node, with its shape, its zeros and its time.

        Raises:
            ValueError: the name does not end with .svg, or the profile is another engine's.
            OSError: the file cannot be written.
        """
        if Path(path).suffix.lower() != ".svg":
            raise ValueError(f"expected the name of an SVG file, got {str(path)!r}; try graph.svg")
        write_text(path, draw(self._model.nodes, self._model.tensors, profile))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the engine as one file, whole or not at all.

        Raises:
            OSError: the file cannot be written; what was there is then as it was.
        """
        write_bytes(path, self._file.numpy().tobytes())

    @property
    def file(self) -> Tensor:
        """Its bytes, which nobody may change."""
        return self._file

    def _called_at_another_batch(self, args: Sequence[Any]) -> list[Tensor] | None:
        """The outputs where only the batch is another, and there is a plan for it."""
        if True not in self._batched:
            return None
        first = args[self._batched.index(True)]
        if not isinstance(first, Tensor) or first.dim() == 0 or len(first) not in self._plans:
            return None
        return self._plans.at(len(first)).native.call(tuple(args))

    def _run(self, tensors: Sequence[Any], timed: bool) -> tuple[list[Tensor], list[float]]:
        own = self._taken(tensors)
        plan = self._plan_of(own)
        outputs = [torch.empty_like(y) for y in plan.templates]
        seconds = plan.native.run(
            [tensor.data_ptr() for tensor in own], [tensor.data_ptr() for tensor in outputs], timed
        )
        return outputs, seconds

    def _plan_of(self, tensors: Sequence[Tensor]) -> BatchPlan:
        """The plan of the batch that these have."""
        named = zip(self._signature.tensors, tensors, self._batched, strict=True)
        batches = {name: len(tensor) for name, tensor, batched in named if batched}
        if len(set(batches.values())) > 1:
            told = ", ".join(f"{batch} of {name}" for name, batch in batches.items())
            raise ValueError(f"expected one batch, got {told}; try tensors of the same samples")
        return self._plans.at(next(iter(batches.values()), self._model.batch))

    def _taken(self, tensors: Sequence[Any]) -> list[Tensor]:
        """Inputs as the kernels read them: contiguous, which images of other layouts become."""
        return [self._taken_one(index, tensor) for index, tensor in enumerate(tensors)]

    def _taken_one(self, index: int, tensor: Any) -> Tensor:
        name = self._inputs[index]["name"]
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"expected a tensor for {name}, got {type(tensor).__name__}; try torch.as_tensor"
            )
        kind = self._inputs[index]["dtype"]
        dtype, cast = CASTS[kind]
        if tensor.dtype != dtype or tensor.device.type != "cpu":
            raise TypeError(
                f"expected {kind} on the CPU for {name}, got {tensor.dtype} on {tensor.device}; "
                f"try {cast}.cpu()"
            )
        if tensor.layout != torch.strided:
            raise TypeError(
                f"expected a dense tensor for {name}, got {tensor.layout}; try .to_dense()"
            )
        if not self._fits(index, tensor.shape):
            told = f"{list(self._shapes[index])} for {name}"
            if self._batched[index]:
                told += f", of any batch from 1 to {self.most_batch}"
            raise ValueError(
                f"expected {told}, got {list(tensor.shape)}; try to compile an engine for that "
                "shape"
            )
        return tensor.detach().contiguous().resolve_neg()

    def _fits(self, index: int, shape: torch.Size) -> bool:
        own = self._shapes[index]
        if not self._batched[index]:
            return shape == own
        return len(shape) == len(own) and shape[1:] == own[1:] and 1 <= shape[0] <= self.most_batch


def load_engine(
    path: str | os.PathLike[str], *, threads: int | None = None, mmap: bool = False
) -> Engine:
    """Load an engine that `Engine.save` wrote; the file is read whole, and may change afterwards.

    `threads`: with how many it runs; None: `torch.get_num_threads()`. `mmap`: use the file where it
    lies instead, which processes then share. Nobody may write into it or shorten it while the
    engine lives: it was checked once, and a process that reads past the end of a mapping is killed.
    `Engine.save` puts a new file in the place of an old one and does neither. Nothing of a file is
    run or evaluated but the operators that it names, and all of it is checked first.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a model file, is damaged, or threads is less than 1.
        RuntimeError: it has operators, or a version, that this library does not know.

    Example:
        >>> import sparseinfer, tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.sinf")
        >>> model = torch.nn.Linear(8, 4).eval()
        >>> sparseinfer.compile(model, torch.zeros(2, 8)).save(path)
        >>> load_engine(path)(torch.ones(2, 8)).shape
        torch.Size([2, 4])
    """
    threads = check_threads(threads)
    with open(path, "rb", buffering=0) as file:
        memory = _mapped(file) if mmap else _read(file)
    if len(memory) == 0:
        raise ValueError(
            f"{Path(path)}: expected a model file, got an empty one; try saving it again"
        )
    try:
        return Engine(memory, threads)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"{Path(path)}: {error}") from None


def _read(file: FileIO) -> Tensor:
    """The bytes of a file, in memory of their own, which begins at a page."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Pages of 4 kB take half of the time to read a large file; some systems have larger ones.
    with suppress(AttributeError, OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(pages)
    done = 0
    while done < size and (count := file.readinto(view[done:])):
        done += count
    return torch.frombuffer(pages, dtype=torch.uint8)[:done]


def _mapped(file: FileIO) -> Tensor:
    """The bytes of a file where they lie; they begin at a page."""
    if os.fstat(file.fileno()).st_size == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    # Torch takes memory that it could write to; a copy of the page would be the process's own.
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of what stands for them: a tensor, a tuple or a dict."""
    if isinstance(inputs, dict):
        return (), inputs
    return inputs if isinstance(inputs, tuple) else (inputs,), {}


def check_threads(threads: int | None) -> int:
    """The number of threads that is meant; None is torch's.

    Raises:
        ValueError: it is less than 1.

    Example:
        >>> check_threads(2)
        2
    """
    if threads is None:
        return torch.get_num_threads()
    if threads < 1:
        raise ValueError(
            f"expected threads >= 1, got {threads}; try threads=None for torch's number"
        )
    return threads
