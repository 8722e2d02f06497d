"""What is measured in the narrower types: the peers, and the layers that they are measured on."""

from __future__ import annotations

from benchmarks.cases import ConvCase, LinearCase
from benchmarks.peers.catalogue import Peer, Target

_ENGINES = "benchmarks.peers.engines"
_OURS = f"{_ENGINES}.ours_narrow"
_INT8 = f"{_ENGINES}.torch_int8"
_BFLOAT16 = f"{_ENGINES}.torch_bfloat16"
_OPENVINO = f"{_ENGINES}.openvino_cpu"
_ONNXRUNTIME = f"{_ENGINES}.onnxruntime_cpu"

INT8 = (
    Peer("sparseinfer", _OURS, "Int8", None, "ours"),
    Peer("sparseinfer-dynamic", _OURS, "Int8Dynamic", None, "sparse", ("linear",),
         ios=("float32",)),
    Peer("torch.quantized", _INT8, "Quantized", None, "dense"),
    Peer("torch.onednn", _INT8, "OneDnn", None, "dense"),
    Peer("torch.dynamic", _INT8, "Dynamic", None, "dense", ("linear",), ios=("float32",)),
    Peer("onnxruntime", _ONNXRUNTIME, "OnnxRuntimeInt8", "onnxruntime", "dense"),
    Peer("openvino", _OPENVINO, "OpenVinoInt8", "openvino", "dense"),
    Peer(
        "openvino-nncf", f"{_ENGINES}.openvino_nncf", "OpenVinoNncf", "nncf", "dense",
        ios=("float32",),
    ),
    Peer(
        "torch.sparse-int8", _INT8, "SparseQuantized", None, "sparse", ("linear",),
        structures=("1x4",),
    ),
)  # fmt: skip

BFLOAT16 = (
    Peer("sparseinfer", _OURS, "Bfloat16", None, "ours"),
    Peer("torch", _BFLOAT16, "Eager", None, "dense"),
    Peer("torch.onednn", _BFLOAT16, "OneDnn", None, "dense"),
    Peer("openvino", _OPENVINO, "OpenVinoBfloat16", "openvino", "dense"),
)

NARROW = {"int8": INT8, "bfloat16": BFLOAT16}
"""The peers of a type other than float32."""

IOS = {
    "float32": ("float32",),
    "bfloat16": ("bfloat16", "float32"),
    "int8": ("uint8", "float32"),
}
"""Types of x and y that are measured: those inside a network, and those at a module's ends."""

STRUCTURES = ("unstructured", "4x1", "1x4")
SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)

TARGETS = (
    Target(ConvCase(64, 64, 56, 3)),
    Target(ConvCase(256, 64, 56, 1)),
    Target(ConvCase(128, 128, 28, 3)),
    Target(ConvCase(128, 128, 56, 3, stride=2)),
    Target(ConvCase(256, 256, 14, 3)),
    Target(ConvCase(1024, 256, 14, 1)),
    Target(ConvCase(512, 512, 7, 3)),
    Target(ConvCase(512, 2048, 7, 1)),
    *(Target(LinearCase(768, 768, n)) for n in (1, 16, 64, 128, 196, 512)),
    *(Target(LinearCase(768, 3072, n)) for n in (16, 128, 512)),
    *(Target(LinearCase(3072, 768, n)) for n in (16, 128, 512)),
    *(Target(LinearCase(1024, 4096, n)) for n in (16, 128)),
    *(Target(LinearCase(2048, 2048, n)) for n in (16, 128)),
    Target(LinearCase(4096, 4096, 1)),
)

QUICK = (
    Target(ConvCase(1024, 256, 14, 1)),
    Target(ConvCase(128, 128, 28, 3)),
    Target(LinearCase(768, 768, 128)),
    Target(LinearCase(3072, 768, 128)),
)
QUICK_SPARSITIES = (0.5, 0.8, 0.9)
