"""Compiles what a device row launches, without a GPU: for processes without TRITON_INTERPRET.

A row's own function is called with CPU tensors that pass for a GPU's, its launches are caught, and
each is compiled as a launch would specialise it. So a new row is checked without a line here.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from sparseinfer import formats, pack
from sparseinfer.kernels import registry

LIMITS = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program may take, by compute capability."""

SMS = 132

KERNELS: dict[str, tuple[tuple[int, ...], ...]] = {"linear": ((),), "conv": ((1, 1), (3, 3))}
"""Sizes of a weight beyond rows and columns that a row is called with."""

_POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.uint8: "*u8",
    torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


def compile_row(name: str, capability: int, dtype: str, tokens: int) -> list[str]:
    """Compile every kernel that the row launches at N = `tokens` (of a convolution: pixels); their
    names, one a launch."""
    launches = _launches(_row(name), capability, getattr(torch, dtype), tokens)
    assert launches, f"{name} launched nothing at N = {tokens}"
    for kernel, arguments, options in launches:
        _compile(kernel, capability, arguments, options)
    return [kernel.fn.__name__ for kernel, _, _ in launches]


def _row(name: str) -> registry.Row:
    return next(row for row in registry.TRITON_ROWS if row.name == name)


def _weight(format: str) -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.randn(128, 256)
    if format == "nm":
        return weight.view(128, 64, 4).mul(torch.tensor([1.0, 0, 0, 1])).view(128, 256)
    kept = torch.zeros(4, 8)
    kept[0] = kept[:, 0] = 1
    return weight * kept.repeat_interleave(32, 0).repeat_interleave(32, 1)


def _launches(
    row: registry.Row, capability: int, dtype: torch.dtype, tokens: int
) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """(kernel, arguments by name, launch options) of each launch."""
    import triton

    caught: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []

    def catch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(self.arg_names, args, strict=False))
        arguments |= {key: value for key, value in kwargs.items() if key in self.arg_names}
        options = {key: value for key, value in kwargs.items() if key not in self.arg_names}
        assert arguments.keys() == set(self.arg_names), self.arg_names
        caught.append((self, arguments, options))

    assert row.meta is not None
    for kernel in KERNELS[row.op]:
        weight = _weight(row.format)
        given = torch.ones(tokens, 256, dtype=dtype)
        geometry: tuple[Any, ...] = ()
        if kernel:
            weight = weight[:, :, None, None].expand(128, 256, *kernel)
            given = given.T[None, :, None].contiguous()
            ends = [size // 2 for size in kernel for _ in range(2)]
            geometry = (kernel, (1, 1), ends, (1, 1), 1, "zeros")
        packed = pack(weight.to(dtype), row.format)
        meta = row.meta(formats.info(packed), SMS)
        tensors = given, packed, torch.ones(128, dtype=dtype)
        x, buffer, bias = (tensor.as_subclass(Posing) for tensor in tensors)
        function = row.load()
        with (
            _pretended(capability), mock.patch.object(triton.JITFunction, "run", catch), OnCpu(),
        ):  # fmt: skip
            function(x, buffer, bias, 128, *geometry, "gelu", meta=meta)
    return caught


class Posing(torch.Tensor):
    """A CPU tensor that says it is on a GPU, as all that is made from it do."""

    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]


class OnCpu(TorchFunctionMode):
    """What is made on a GPU is made on the CPU, and passes for the GPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" not in kwargs:
            return func(*args, **kwargs)
        return func(*args, **kwargs | {"device": "cpu"}).as_subclass(Posing)


@contextlib.contextmanager
def _pretended(capability: int) -> Iterator[None]:
    """torch says that it has a GPU of this capability."""
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "get_device_capability", lambda *_: divmod(capability, 10)),
            (torch.cuda, "device", lambda *_: contextlib.nullcontext()),
            (torch.cuda, "current_stream", lambda *_: mock.Mock()),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def _compile(
    kernel: Any, capability: int, arguments: dict[str, Any], options: dict[str, Any]
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        free = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or isinstance(value, bool) or (free and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        else:
            assert isinstance(value, int), (parameter.name, value)
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if free and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    name = kernel.fn.__name__
    limit, shared = LIMITS[capability], compiled.metadata.shared
    assert shared <= limit, f"{name} takes {shared} bytes of shared memory, {limit} are there"
    spilled = stack_bytes(compiled.asm["cubin"])
    assert spilled in (None, 0), f"{name} spills {spilled} bytes for sm_{capability}: {arguments}"


def stack_bytes(cubin: bytes) -> int | None:
    """The most stack that a function of a cubin takes, which is what it spills; None: unknown.

    Triton's wheels bring the tool that tells.
    """
    import triton

    assert triton.__file__ is not None
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    found = [int(size) for size in re.findall(r"STACK:(\d+)", told)]
    return max(found) if found else None


def too_much_shared_memory_is_found() -> str:
    """What a kernel with tiles beyond any limit is told."""
    kernel, arguments, options = _launches(_row("nm.linear.triton"), 80, torch.float16, 512)[0]
    with mock.patch.dict(LIMITS, {80: 1}):
        try:
            _compile(kernel, 80, arguments, options)
        except AssertionError as error:
            return str(error)
    return ""


def a_spill_is_found() -> str:
    """What a kernel whose stack is taken for 8 bytes is told."""
    kernel, arguments, options = _launches(_row("nm.linear.triton"), 80, torch.float16, 512)[0]
    with mock.patch(f"{__name__}.stack_bytes", lambda cubin: 8):
        try:
            _compile(kernel, 80, arguments, options)
        except AssertionError as error:
            return str(error)
    return ""
