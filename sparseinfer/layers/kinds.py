"""The kinds of layer: which dense class becomes which sparse one, and what is known of it.

One row a kind. A row names the sparse class, whose class methods read and build dense layers of the
kind (see `sparseinfer.layers.base.SparseLayer`); whatever looks at a layer asks its row.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparseinfer.layers.attention import SparseMultiheadAttention
from sparseinfer.layers.cells import SparseGRUCell, SparseLSTMCell, SparseRNNCell
from sparseinfer.layers.dense import CONV1D, class_named, effective
from sparseinfer.layers.linear_conv import SparseConv1d, SparseConv2d, SparseLayer, SparseLinear
from sparseinfer.layers.projections import Projection, projections
from sparseinfer.layers.recurrent import SparseGRU, SparseLSTM, SparseRNN
from sparseinfer.layers.transposed import SparseConvTranspose1d, SparseConvTranspose2d
from sparseinfer.timing import cost
from sparseinfer.timing.machine import HOST

__all__ = ["KINDS", "Kind", "kind_named", "kind_of", "kind_of_sparse", "packed_layers"]


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    `dense` is torch's class, or the qualified names of a library's, which is recognised by them and
    never imported. `sparse` takes its place; None where there is no kernel, so that such layers are
    pruned and stay dense. `op` is the operation in the kernel registry, `devices` the types of
    those with kernels. `assumed_n` are the tokens or pixels of a call where no input was given.
    `empty_call` makes a layer, and gives the shape of an input, whose call is nothing but overhead.
    `steps` tells that a call is a sequence of small ones. `output_dim` is the dimension of the
    output rows in the weight. `parts` makes stand-in layers for the weights of a layer that reads
    its children's weights itself.
    """

    name: str
    dense: type[nn.Module] | tuple[str, ...]
    sparse: Any
    op: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    assumed_n: tuple[int, ...] = ()
    empty_call: tuple[Callable[[], nn.Module], tuple[int, ...]] | None = None
    steps: bool = False
    output_dim: int = 0
    parts: Callable[[Any, bool], list[Projection]] | None = None

    def class_of(self, module: nn.Module) -> type[nn.Module] | None:
        """The class of this kind that `module` is of or inherits from; None where there is none."""
        if isinstance(self.dense, tuple):
            return class_named(module, self.dense)
        return self.dense if isinstance(module, self.dense) else None

    @property
    def _reader(self) -> Any:
        """Whose class methods read the dense layer: what has no kernel has one weight."""
        return self.sparse or SparseLayer

    def weights(self, module: nn.Module) -> list[str]:
        """Names of the weights of a dense layer."""
        return self._reader.weights(module)  # type: ignore[no-any-return]

    def biases(self, module: nn.Module) -> list[str]:
        """Names of the biases that a dense layer may have."""
        return self._reader.biases(module)  # type: ignore[no-any-return]

    def matrix(self, module: nn.Module) -> Tensor | None:
        """The effective weight as one tensor, as a plain layer of torch holds it; None without one.

        Output rows come first, but for transposed convolutions, see `by_outputs`. Several weights
        stand side by side.

        Raises:
            ValueError: see `sparseinfer.layers.dense.effective`.
        """
        return self._reader.matrix(module)  # type: ignore[no-any-return]

    def rebuild(self, like: Any, matrix: Tensor, biases: Mapping[str, Tensor]) -> nn.Module:
        """A plain layer with the arguments of `like` (dense or sparse) and these tensors, which
        take no gradients."""
        return self._reader.rebuild(like, matrix, biases)  # type: ignore[no-any-return]

    def effective_biases(self, module: nn.Module) -> dict[str, Tensor]:
        """The biases of a dense layer as they take effect, by name."""
        found = {name: effective(module, name) for name in self.biases(module)}
        return {name: bias for name, bias in found.items() if bias is not None}

    def tokens(self, dense: nn.Module, shape: Sequence[int]) -> int:
        """N of an input of a plain layer: tokens, or the output pixels of a convolution."""
        return self._reader.tokens(dense, shape)  # type: ignore[no-any-return]

    def refuses(self, module: nn.Module) -> str:
        """Why no sparse layer can take the place of this one; empty where one can."""
        if "cuda" not in self.devices and any(own.is_cuda for own in module.parameters()):
            work = "the steps of a recurrent layer" if self.steps else self.name
            return f"there is no kernel for {work} on a GPU"
        return self._reader.refuses(module)  # type: ignore[no-any-return]

    def packed_in(self, module: nn.Module, prefix: str, names: Container[str]) -> bool:
        """Whether a state_dict with these `names` holds packed weights of a dense layer."""
        stored = self._reader.renames(module)
        return any(f"{prefix}{stored[weight]}" in names for weight in self.weights(module))

    def worst_estimate(
        self, M: int, K: int, density: float, threads: int = 1, format: str = "panel",
        target: str = HOST,
    ) -> cost.Estimate:  # fmt: skip
        """The least favourable estimate of the cost model over `assumed_n`.

        Steps leave little to divide, so that they have to gain on one thread too.

        Raises:
            ValueError: see `sparseinfer.timing.cost.estimate`.
        """
        counts = (1, threads) if self.steps else (threads,)
        return cost.worst_estimate(self.name, M, K, density, self.assumed_n, counts, format, target)


KINDS: tuple[Kind, ...] = (
    Kind(
        "linear", nn.Linear, SparseLinear, "linear",
        assumed_n=(1, 128), empty_call=(lambda: nn.Linear(16, 16), (1, 16)),
    ),
    Kind("linear", CONV1D, SparseLinear, "linear", output_dim=1),
    Kind(
        "conv1d", nn.Conv1d, SparseConv1d, "conv",
        assumed_n=(128,), empty_call=(lambda: nn.Conv1d(16, 16, 1), (1, 16, 1)),
    ),
    Kind(
        "conv2d", nn.Conv2d, SparseConv2d, "conv",
        assumed_n=(14 * 14,), empty_call=(lambda: nn.Conv2d(16, 16, 1), (1, 16, 1, 1)),
    ),
    Kind("conv3d", nn.Conv3d, None, "conv"),
    Kind(
        "convtranspose1d", nn.ConvTranspose1d, SparseConvTranspose1d, "conv", output_dim=1,
        assumed_n=(256,), empty_call=(lambda: nn.ConvTranspose1d(16, 16, 2, stride=2), (1, 16, 1)),
    ),
    Kind(
        "convtranspose2d", nn.ConvTranspose2d, SparseConvTranspose2d, "conv", output_dim=1,
        assumed_n=(28 * 28,),
        empty_call=(lambda: nn.ConvTranspose2d(16, 16, 2, stride=2), (1, 16, 1, 1)),
    ),
    Kind("convtranspose3d", nn.ConvTranspose3d, None, "conv", output_dim=1),
    Kind("lstm", nn.LSTM, SparseLSTM, "linear", ("cpu",), assumed_n=(1,), steps=True),
    Kind("gru", nn.GRU, SparseGRU, "linear", ("cpu",), assumed_n=(1,), steps=True),
    Kind("rnn", nn.RNN, SparseRNN, "linear", ("cpu",), assumed_n=(1,), steps=True),
    Kind("lstmcell", nn.LSTMCell, SparseLSTMCell, "linear", ("cpu",), assumed_n=(1,), steps=True),
    Kind("grucell", nn.GRUCell, SparseGRUCell, "linear", ("cpu",), assumed_n=(1,), steps=True),
    Kind("rnncell", nn.RNNCell, SparseRNNCell, "linear", ("cpu",), assumed_n=(1,), steps=True),
    Kind(
        "multiheadattention", nn.MultiheadAttention, SparseMultiheadAttention, "linear",
        parts=projections,
    ),
)  # fmt: skip
"""`assumed_n` takes the worse of 1 and 128 tokens, and 14 x 14 pixels; twice that along each axis
where a layer usually doubles it."""


def kind_of(module: nn.Module) -> Kind | None:
    """The kind that a dense layer belongs to; None where it is no layer of this table.

    Example:
        >>> kind_of(nn.Linear(4, 4)).name
        'linear'
    """
    return next((kind for kind in KINDS if kind.class_of(module) is not None), None)


def kind_of_sparse(module: nn.Module) -> Kind | None:
    """The kind that a sparse layer belongs to; None where it is none of ours.

    Example:
        >>> kind_of_sparse(SparseLinear.from_dense(nn.Linear(4, 4))).name
        'linear'
    """
    return next((kind for kind in KINDS if kind.sparse and isinstance(module, kind.sparse)), None)


def kind_named(name: str) -> Kind:
    """The row of `KINDS` of this name.

    Example:
        >>> kind_named("conv2d").sparse.__name__
        'SparseConv2d'
    """
    return next(kind for kind in KINDS if kind.name == name)


def packed_layers(model: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    """The layers of a model that hold a packed weight, by each of their names.

    Example:
        >>> [name for name, _ in packed_layers(nn.Sequential(SparseLinear(4, 4), nn.ReLU()))]
        ['0']
    """
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseLayer):
            yield name, module
