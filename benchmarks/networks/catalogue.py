"""The engines that run whole networks, and in which types."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.catalogue import OPT_IN, Peer

DTYPES = ("float32", "bfloat16", "int8")

_ENGINES = "benchmarks.networks.engines"


@dataclass(frozen=True)
class Entrant:
    """An engine in one type: its worker, and the package that has to be there."""

    peer: Peer
    dtype: str
    package: str

    @property
    def name(self) -> str:
        """Name in result files and tables."""
        return self.peer.name


def _torch(name: str, engine: str, role: str, dtype: str = "float32") -> Entrant:
    return Entrant(Peer(name, f"{_ENGINES}.torch_networks", engine, None, role), dtype, "torch")


def _onnx(name: str, engine: str, package: str, dtype: str) -> Entrant:
    module = f"{_ENGINES}.{package}_networks"
    return Entrant(Peer(name, module, engine, package, "dense"), dtype, package)


ENTRANTS = {
    entrant.name: entrant
    for entrant in (
        _torch("sparseinfer", "Ours", "ours"),
        _torch("sparseinfer-bf16", "OursBfloat16", "ours", "bfloat16"),
        _torch("sparseinfer-int8", "OursInt8", "ours", "int8"),
        _torch("torch", "Eager", "dense"),
        _torch("torch.compile", "Compiled", "dense"),
        _onnx("onnxruntime", "OnnxRuntime", "onnxruntime", "float32"),
        _onnx("onnxruntime-int8", "OnnxRuntimeInt8", "onnxruntime", "int8"),
        _onnx("openvino", "OpenVino", "openvino", "float32"),
        _onnx("openvino-bf16", "OpenVinoBfloat16", "openvino", "bfloat16"),
        _onnx("openvino-int8", "OpenVinoInt8", "openvino", "int8"),
        _onnx("mnn", "Mnn", "mnn", "float32"),
        _onnx(OPT_IN, "DeepSparse", "deepsparse", "float32"),
    )
}

OURS = {entrant.dtype: name for name, entrant in ENTRANTS.items() if entrant.peer.role == "ours"}
"""Ours in each type."""

SLOW_START = "torch.compile"
"""Takes a minute and more to compile a network: only where it is asked for."""
