"""What every drop-in sparse layer is: a packed weight in one buffer, and its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sparseinfer import formats, ops
from sparseinfer.formats.handles import Handle, open_packed
from sparseinfer.formats.stand_in import PackedWeight
from sparseinfer.formats.table import format_named
from sparseinfer.kernels.activations import activation_module, check_choice
from sparseinfer.layers.adapters import computes_weight
from sparseinfer.layers.arrangement import Arrangement
from sparseinfer.layers.dense import by_outputs, computed_weight, effective
from sparseinfer.layers.loading import check_type, own_copy, packed_as, take_packed
from sparseinfer.layers.quantized_input import QuantizedInput
from sparseinfer.layers.reads import READS_TO_WARN, called_by_a_module, warn_of_reads
from sparseinfer.quantize.activations import ActivationScale

__all__ = ["THREADS_OF_TORCH", "SparseLayer"]

_Layer = TypeVar("_Layer", bound="SparseLayer")

THREADS_OF_TORCH = 0
"""The operators then ask `torch.get_num_threads()` at every call."""


class SparseLayer(QuantizedInput):
    """What the sparse layers share: a packed weight without gradient, a bias, an activation.

    `packed` is a uint8 buffer, so `state_dict`, `deepcopy` and pickle work as for any module; a
    state_dict with a dense `weight` loads too. It is validated when it is loaded and before a
    kernel first reads it. Moves between floating-point types (`half()`) reach the bias, and the
    type that the weight is read in; the packed values stay as they are. `activation` (a name of
    `sparseinfer.ops.ACTIVATIONS`) is applied by the kernel; `weight_shape`
    is the dense weight's shape, `packed_shape` the packed one's. Where the two differ, a class
    overrides `_arranged` and `_restored`; `outputs` then counts elements of the bias.
    """

    dense_type: ClassVar[type[nn.Module]]
    packed: Tensor
    bias: nn.Parameter | None
    _reads = 0
    computed_by = ""
    """The class that computed the packed weight from a parameter of the same name, if one did."""

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        groups: int,
        bias: bool,
        format: str,
        activation: str,
        packed: Tensor | None,
        packed_shape: tuple[int, ...] | None = None,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ops.ACTIVATIONS)
        self.weight_shape = weight_shape
        self.packed_shape = packed_shape or weight_shape
        self.groups = groups
        self.activation = activation
        if packed is None:
            packed = formats.pack(
                torch.zeros(self.packed_shape, dtype=torch.float32, device="cpu"), format, groups
            )
        else:
            error = self._shape_error(packed)
            if error is not None:
                raise ValueError(error)
        self.register_buffer("packed", packed)
        zeros = torch.zeros(outputs or weight_shape[0], dtype=torch.float32, device=packed.device)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)
        # Moves between types reach it as they would reach the weight, which has its type.
        self._typed = torch.float32

    @classmethod
    def from_dense(
        cls: type[_Layer],
        module: nn.Module,
        format: str = "panel",
        activation: str = "none",
        input_scale: ActivationScale | None = None,
        **params: Any,
    ) -> _Layer:
        """Build the sparse layer of a dense one, which may be masked or parametrized.

        `params` are the format's, see `sparseinfer.pack`; `weights="bfloat16",
        activations="bfloat16"` rounds every input to bfloat16 too, and sums in float32. An int8
        weight (`weights="int8"`) of a linear layer or convolution multiplies inputs that are
        rounded by `input_scale`, or each token of a linear layer by its own range where that is
        None. Weight and bias are copied; the training flag is kept.

        Raises:
            TypeError: `module` is not the dense counterpart of this class, or its weight is not
                float32.
            ValueError: the format is unknown or cannot store the weight.

        Example:
            >>> from sparseinfer import SparseLinear
            >>> SparseLinear.from_dense(nn.Linear(8, 4)).packed.dtype
            torch.uint8
        """
        if not isinstance(module, cls.dense_type):
            raise TypeError(
                f"expected an nn.{cls.dense_type.__name__}, got {type(module).__name__}; "
                "try convert_to_sparse(model)"
            )
        # Tensors made under inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            weight, bias = computed_weight(module), effective(module, "bias")
            if weight is None:
                raise ValueError("expected a layer with a weight, got None; try another layer")
            groups = getattr(module, "groups", 1)
            packed = formats.pack(cls._arranged(module, weight), format, groups, **params)
            packed = packed.to(weight.device)
            sparse = cls._like(module, bias is not None, activation, packed)
            if sparse.bias is not None and bias is not None:
                sparse.bias.data = bias.clone()
            sparse.computed_by = computes_weight(module)
            sparse.round_input(input_scale)
        return sparse.train(module.training)

    @classmethod
    def _like(
        cls: type[_Layer], module: nn.Module, bias: bool, activation: str, packed: Tensor
    ) -> _Layer:
        raise NotImplementedError

    @classmethod
    def weights(cls, dense: Any) -> list[str]:
        """Names of the weights of a dense layer of this kind."""
        return ["weight"]

    @classmethod
    def biases(cls, dense: Any) -> list[str]:
        """Names of the biases that a dense layer of this kind may have."""
        return ["bias"]

    @classmethod
    def matrix(cls, dense: Any) -> Tensor | None:
        """The effective weight of a dense layer, see `sparseinfer.layers.kinds.Kind.matrix`."""
        return computed_weight(dense)

    @classmethod
    def rebuild(cls, like: Any, matrix: Tensor, biases: Mapping[str, Tensor]) -> nn.Module:
        """A plain dense layer, see `sparseinfer.layers.kinds.Kind.rebuild`."""
        with torch.device("meta"):
            dense = cls._plain(like, matrix, "bias" in biases)
        for name, tensor in {"weight": matrix, **biases}.items():
            setattr(dense, name, nn.Parameter(tensor, requires_grad=False))
        return dense.train(like.training)

    @classmethod
    def _plain(cls, like: Any, weight: Tensor, bias: bool) -> nn.Module:
        """A dense layer with the arguments of `like` (dense or sparse), on the default device."""
        raise NotImplementedError

    @classmethod
    def tokens(cls, dense: Any, shape: Sequence[int]) -> int:
        """N of an input of a plain layer: tokens, or the output pixels of a convolution."""
        weight = dense.weight
        shape_only = cls.rebuild(dense, torch.empty_like(weight, device="meta"), {})
        y = shape_only(torch.empty(shape, dtype=weight.dtype, device="meta"))
        return y.numel() // by_outputs(dense, weight).shape[0]  # type: ignore[no-any-return]

    @classmethod
    def refuses(cls, dense: Any) -> str:
        """Why no sparse layer can take the place of this one; empty where one can."""
        return ""

    @classmethod
    def renames(cls, layer: Any) -> dict[str, str]:
        """What a state_dict of a sparse layer calls the tensors of a dense one, where it differs.

        `layer` is either.
        """
        return {"weight": "packed"}

    def plain(self) -> nn.Module:
        """A dense layer of the same arguments without bias and values, on the meta device."""
        return self.rebuild(self, torch.empty(self.weight_shape, device="meta"), {})

    def original(self) -> nn.Module:
        """`to_dense`, by the class that this layer was converted from."""
        return self.to_dense()

    def dense_tensor(self, name: str) -> Tensor:
        """A weight as a state_dict of the class that this layer was converted from holds it."""
        return self.dense_weight()

    @classmethod
    def _arranged(cls, layer: nn.Module, weight: Tensor) -> Tensor:
        """The weight of a dense or sparse `layer` as it is packed, of shape `packed_shape`."""
        return weight

    def _restored(self, weight: Tensor) -> Tensor:
        """The dense weight of an unpacked one: undoes `_arranged`."""
        return weight

    @property
    def arrangement(self) -> Arrangement:
        """How the packed weight lies beside that of the class that it was converted from."""
        return Arrangement()

    @property
    def handle(self) -> Handle:
        """The validated view of the packed weight."""
        return open_packed(self.packed)

    @property
    def format(self) -> str:
        """The name of the packed format."""
        return self.handle.weights.format

    @property
    def is_narrow(self) -> bool:
        """Whether the packed weight has fewer bits than the layer's type, or rounds its input."""
        handle = self.handle
        return handle.activations != "float32" or handle.dtype.itemsize < self._typed.itemsize

    @property
    def nnz(self) -> int:
        """The number of non-zero weights."""
        return self.handle.weights.nnz

    @property
    def weight(self) -> Tensor:
        """The dense weight, unpacked at every use.

        Writing into it raises; assigning another one packs that, in the format that the layer has.
        What was read before stays the weight that it was.
        """
        if torch.compiler.is_compiling():  # the compiler does not trace through the stand-in
            weight = torch.ops.sparseinfer.dense_weight(self.packed, self.packed_shape)
            return self._restored(weight).to(self._typed)
        packed, dtype = self.packed, self._value_type()

        def unpack() -> Tensor:
            self._note_read()
            return self._restored(formats.unpack(packed)).to(dtype)

        return PackedWeight(unpack, self.weight_shape, dtype, self.packed.device)

    @weight.setter
    def weight(self, value: Any) -> None:
        self._assign(value)

    def _assign(self, value: Any) -> None:
        packed = packed_as(self, value)
        self._buffers["packed"] = packed.to(self.packed.device)
        self._own_packed()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            self._assign(param)
        else:
            super().register_parameter(name, param)

    def _note_read(self) -> None:
        """Count the unpackings inside calls of modules, and warn of them once."""
        if self._reads < READS_TO_WARN and called_by_a_module():
            self._reads += 1
            if self._reads == READS_TO_WARN:
                warn_of_reads(f"{type(self).__name__}({self._geometry()})")

    def dense_weight(self) -> Tensor:
        """Unpack the float32 weight, in the shape and on the device of the dense layer's.

        Raises:
            ValueError: the packed buffer is not valid.

        Example:
            >>> from sparseinfer import SparseLinear
            >>> SparseLinear.from_dense(nn.Linear(8, 4)).dense_weight().shape
            torch.Size([4, 8])
        """
        return self._restored(self.handle.unpack(self.packed))

    def to_dense(self) -> nn.Module:
        """The torch layer that computes the same, followed by the activation where there is one.

        Example:
            >>> from sparseinfer import SparseLinear
            >>> SparseLinear.from_dense(nn.Linear(8, 4)).to_dense()
            Linear(in_features=8, out_features=4, bias=True)
        """
        bias = None if self.bias is None else self.bias.detach().clone()
        dtype = self._value_type() if bias is None else bias.dtype
        biases = {} if bias is None else {"bias": bias}
        dense = self.rebuild(self, self.dense_weight().to(dtype), biases).requires_grad_()
        if self.activation == "none":
            return dense
        return nn.Sequential(dense, activation_module(self.activation)).train(self.training)

    def _value_type(self) -> torch.dtype:
        """The type of the weight: that of the packed values where the kernels compute in it."""
        # The other formats compute in float32 whatever the type of the layer.
        if self._is_valid() and format_named(self.format).narrow == "kept":
            return self.handle.dtype
        return self._typed

    def extra_repr(self) -> str:
        text = f"{self._geometry()}, bias={self.bias is not None}"
        if self.activation != "none":
            text += f", activation={self.activation}"
        if not self._is_valid():
            return f"{text}, bytes={self.packed.numel()}"
        density = self.nnz / max(1, torch.Size(self.weight_shape).numel())
        if self.handle.is_pairs:
            text += ", weights=bfloat16, activations=bfloat16"
        elif self.handle.is_int8:
            scale = self.activation_scale
            own_range = "per call" if self.runs_dense else "per token"
            text += f", weights=int8, input_scale={own_range if scale is None else scale.scale}"
            if self.runs_dense:
                text += ", runs_dense=True"
        return f"{text}, density={density:.3g}, format={self.format}, bytes={self.packed.numel()}"

    def _geometry(self) -> str:
        raise NotImplementedError

    def _is_real(self) -> bool:
        """Whether `packed` holds bytes: not so on the meta device and under fake tensors."""
        return type(self.packed) is Tensor and not self.packed.is_meta

    def _is_valid(self) -> bool:
        """Whether `packed` holds a weight: not so after `to_empty`, before one is loaded."""
        try:
            return self._is_real() and self.handle is not None
        except ValueError:
            return False

    def _shape_error(self, packed: Tensor) -> str | None:
        handle = open_packed(packed)
        shape, groups = handle.shape, handle.weights.groups
        if shape == self.packed_shape and groups == self.groups:
            return None
        return (
            f"expected a packed weight of shape {list(self.packed_shape)} with "
            f"groups={self.groups}, got {list(shape)} with groups={groups}; try a checkpoint of "
            "the same architecture"
        )

    def _own_packed(self) -> None:
        """Keep `packed` an ordinary tensor: inference tensors are validated at every call."""
        if self.packed.is_inference():
            with torch.inference_mode(False):
                self._buffers["packed"] = self.packed.clone()

    def adopt_packed(self, packed: Any) -> None:
        """Take a packed weight over, which is copied where others may change its memory.

        Raises:
            TypeError: `packed` is not a tensor.
            ValueError: it is not a valid packed weight of this layer's shape.

        Example:
            >>> from sparseinfer import SparseLinear, pack
            >>> SparseLinear(4, 4).adopt_packed(pack(torch.eye(4)))
        """
        packed = own_copy(packed)
        self._check_packed(packed)
        self._buffers["packed"] = packed

    def _apply(self: _Layer, fn: Callable[..., Any], recurse: bool = True) -> _Layer:
        super()._apply(fn, recurse)
        # On the CPU, as a layer that is still on the meta device has nothing to copy from there.
        self._typed = fn(torch.empty(0, dtype=self._typed, device="cpu")).dtype
        self._own_packed()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_typed" not in vars(self):  # pickled by an earlier version
            self._typed = torch.float32 if self.bias is None else self.bias.dtype
        self._own_packed()
        if self._is_real():
            self._buffers["packed"] = own_copy(self.packed)
            open_packed(self.packed)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any],
        strict: bool, missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Accept a valid packed weight of this layer's shape, or a dense weight, which is packed.

        A dense weight may come as pruning leaves it, `weight_orig` beside `weight_mask`; it is
        packed in the format that the layer has.
        """
        entries, key = dict(state_dict), f"{prefix}packed"
        before, at = self._buffers["packed"], len(error_msgs)
        self.make_room(entries, prefix, error_msgs)
        source, refused = take_packed(self, entries, prefix)
        missing = [key] if refused else []
        if key in entries:
            # The copy that follows needs a buffer of the same length.
            self._buffers["packed"] = torch.empty_like(entries[key], device=self.packed.device)
        found_missing: list[str] = []
        super()._load_from_state_dict(
            entries, prefix, local_metadata, strict, found_missing, unexpected_keys, error_msgs
        )
        missing_keys += [name for name in found_missing if name not in missing]
        self._own_packed()
        if key in entries:
            try:
                # The layer's own copy is what is validated, so that the kernels need not do it.
                self._check_packed(self.packed if self._is_real() else entries[key])
            except (TypeError, ValueError) as invalid:
                refused = str(invalid)
                self._buffers["packed"] = before
        if refused:
            error_msgs.insert(at, f"While loading {prefix}{source}: {refused}")

    def _check_packed(self, packed: Any) -> None:
        check_type(packed)
        error = self._shape_error(packed)
        if error is not None:
            raise ValueError(error)

    def _loaded(self, weight: Any) -> Any:
        """A dense weight of a checkpoint in the shape of this layer's."""
        if self.computed_by:
            raise ValueError(
                f"expected a packed weight, got the one that {self.computed_by} computes its "
                "weight from; try loading it into the dense model, and convert_to_sparse again"
            )
        return weight
