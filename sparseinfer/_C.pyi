"""Types of the native module (csrc/python/)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def version() -> str: ...
def source_hash() -> str: ...
def cpu_features() -> list[str]: ...
def targets() -> list[dict[str, Any]]: ...
def formats() -> list[dict[str, Any]]: ...
def isas() -> list[dict[str, Any]]: ...
def rows() -> list[dict[str, Any]]: ...
def select(format: str, op: str) -> int: ...
def threads_backend() -> str: ...
def release_scratch() -> None: ...
def scratch_bytes() -> int: ...
def pack(
    format: str,
    weight: npt.NDArray[np.float32],
    groups: int = 1,
    *,
    kblock: int = -1,
    n: int = 2,
    m: int = 4,
    block: int = 64,
    value_type: str = "float32",
    target: str | None = None,
    scales: npt.NDArray[np.float32] | None = None,
    g: int = 0,
) -> npt.NDArray[np.uint8]: ...
def seal(blob: npt.NDArray[np.uint8]) -> None: ...

class Weights:
    def __init__(self, ptr: int, nbytes: int) -> None: ...
    @property
    def format(self) -> str: ...
    @property
    def value_type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def groups(self) -> int: ...
    @property
    def nnz(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def info(self) -> dict[str, Any]: ...
    def unpack(self) -> npt.NDArray[np.float32]: ...
    def linear(
        self,
        x: int,
        y: int,
        bias: int,
        n: int,
        ldx: int,
        ldy: int,
        channel_major: bool,
        activation: str,
        row: int,
        threads: int,
        /,
    ) -> None: ...
    def conv(
        self,
        x: int,
        y: int,
        bias: int,
        batch: int,
        h: int,
        w: int,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        padding_mode: str,
        activation: str,
        row: int,
        threads: int,
    ) -> None: ...
    def linear_int8(
        self,
        x: int,
        y: int,
        bias: int,
        n: int,
        ldx: int,
        ldy: int,
        channel_major: bool,
        activation: str,
        row: int,
        threads: int,
        x_type: str,
        y_type: str,
        x_scale: float,
        x_zero_point: int,
        x_scales: int,
        x_zero_points: int,
        y_scale: float,
        y_zero_point: int,
        /,
    ) -> None: ...
    def conv_int8(
        self,
        x: int,
        y: int,
        bias: int,
        batch: int,
        h: int,
        w: int,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        padding_mode: str,
        activation: str,
        row: int,
        threads: int,
        x_type: str,
        y_type: str,
        x_scale: float,
        x_zero_point: int,
        y_scale: float,
        y_zero_point: int,
        /,
    ) -> None: ...
    def linear_bf16(
        self,
        x: int,
        y: int,
        bias: int,
        n: int,
        ldx: int,
        ldy: int,
        channel_major: bool,
        activation: str,
        row: int,
        threads: int,
        x_type: str,
        y_type: str,
        /,
    ) -> None: ...
    def conv_bf16(
        self,
        x: int,
        y: int,
        bias: int,
        batch: int,
        h: int,
        w: int,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        padding_mode: str,
        activation: str,
        row: int,
        threads: int,
        x_type: str,
        y_type: str,
        /,
    ) -> None: ...
    def recurrent(
        self,
        gates: int,
        bias: int,
        h: int,
        c: int,
        y: int,
        steps: int,
        batch: int,
        step_rows: int,
        batch_rows: int,
        batch_sizes: int,
        cell: str,
        reverse: bool,
        row: int,
        threads: int,
    ) -> None: ...

def seal_model(ptr: int, nbytes: int) -> None: ...

class Model:
    def __init__(self, ptr: int, nbytes: int, threads: int = 1) -> None: ...
    def at_batch(self, batch: int) -> Model: ...
    @property
    def batch(self) -> int: ...
    @property
    def most_batch(self) -> int: ...
    @property
    def inputs(self) -> list[dict[str, Any]]: ...
    @property
    def outputs(self) -> list[dict[str, Any]]: ...
    @property
    def nodes(self) -> list[dict[str, Any]]: ...
    @property
    def tensors(self) -> list[dict[str, Any]]: ...
    @property
    def golden_bytes(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def metadata(self) -> bytes: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def context_bytes(self) -> int: ...

class Torch:
    def __init__(
        self, tensor: type, parameter: type, float32: Any, strided: Any, empty_like: Any
    ) -> None: ...

class Plan:
    def __init__(
        self,
        model: Model,
        threads: int,
        shapes: tuple[Any, ...],
        templates: tuple[Any, ...],
        torch: Torch,
    ) -> None: ...
    def call(self, tensors: tuple[Any, ...]) -> list[Any] | None: ...
    def run(
        self, inputs: Sequence[int], outputs: Sequence[int], timed: bool = False
    ) -> list[float]: ...
    def watch(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[bytes]: ...
    def selftest(self) -> float: ...
