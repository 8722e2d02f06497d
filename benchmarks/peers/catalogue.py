"""The peers, and the layers that they are measured on."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cases import Case, ConvCase, LinearCase, Pattern

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
THREADS = (1, 2)


@dataclass(frozen=True)
class Peer:
    """An engine: the class that runs it, and where."""

    name: str
    module: str
    engine: str
    environment: str | None
    """Its virtual environment (see environments.py); None: the one that is running."""
    role: str
    """``ours``, ``dense``, ``narrow`` (dense, a type narrower than was asked for) or ``sparse``."""
    ops: tuple[str, ...] = ("linear", "conv")
    most_threads: int | None = None
    """Threads that it can use at most; None: any number."""
    ios: tuple[str, ...] = ()
    """Types of x and y that it takes; none: any."""
    structures: tuple[str, ...] = ()
    """Structures of zeros that it is for; none: any."""

    def takes(self, target: Target) -> bool:
        """Return whether the peer runs such layers at all."""
        return (
            target.case.op in self.ops
            and (not self.ios or target.io in self.ios)
            and (not self.structures or target.structure in self.structures)
        )


_TORCH = "benchmarks.peers.engines.torch_layers"
_OPENVINO = "benchmarks.peers.engines.openvino_cpu"

OURS = Peer("sparseinfer", _TORCH, "Ours", None, "ours")

PEERS = (
    OURS,
    Peer("torch", _TORCH, "Eager", None, "dense"),
    Peer("torch.compile", _TORCH, "Compiled", None, "dense"),
    Peer(
        "onnxruntime", "benchmarks.peers.engines.onnxruntime_cpu", "OnnxRuntime", "onnxruntime",
        "dense",
    ),
    Peer("openvino", _OPENVINO, "OpenVino", "openvino", "dense"),
    Peer("openvino-default", _OPENVINO, "OpenVinoDefault", "openvino", "narrow"),
    Peer("torch.sparse", _TORCH, "SparseCsr", None, "sparse", ("linear",)),
    Peer(
        "scipy.sparse", "benchmarks.peers.engines.scipy_csr", "ScipyCsr", "scipy", "sparse",
        ("linear",), most_threads=1,
    ),
    Peer("mnn", "benchmarks.peers.engines.mnn_cpu", "Mnn", "mnn", "sparse"),
    Peer(
        "deepsparse", "benchmarks.peers.engines.deepsparse_cpu", "DeepSparse", "deepsparse",
        "sparse",
    ),
)  # fmt: skip

OPT_IN = "deepsparse"
"""Runs only where it is asked for by name: its licence is for evaluation."""


@dataclass(frozen=True)
class Target:
    """A case with its weights warm or cold, and what it is computed in."""

    case: Case
    cold: bool = False
    dtype: str = "float32"
    """Type that is multiplied: ``float32``, ``bfloat16`` or ``int8``."""
    io: str = "float32"
    """Type of x and y: ``float32``, as at a module's ends, or ``bfloat16`` or ``uint8``."""
    structure: str = "unstructured"
    """Where the zeros are: ``unstructured``, or blocks of outputs x inputs such as ``4x1``."""

    @property
    def name(self) -> str:
        """Name in result files, in tables and on the command line."""
        return self.case.name + (" cold" if self.cold else "")

    @property
    def group(self) -> str:
        """Group in tables and plots."""
        return self.case.group + (", cold" if self.cold else "")

    def pattern(self, sparsity: float) -> Pattern:
        """Return the zeros of the target's weight at a sparsity."""
        if self.structure == "unstructured":
            return Pattern(sparsity)
        height, width = self.structure.split("x")
        return Pattern(sparsity, block=(int(height), int(width)))


TARGETS = (
    Target(ConvCase(256, 64, 56, 1)),
    Target(ConvCase(512, 128, 28, 1)),
    Target(ConvCase(1024, 256, 14, 1)),
    Target(ConvCase(512, 2048, 7, 1)),
    Target(ConvCase(64, 64, 56, 3)),
    Target(ConvCase(128, 128, 28, 3)),
    Target(ConvCase(256, 256, 14, 3)),
    Target(ConvCase(512, 512, 7, 3)),
    Target(ConvCase(128, 128, 56, 3, stride=2)),
    Target(LinearCase(3072, 768, 512)),
    Target(LinearCase(768, 3072, 512)),
    Target(LinearCase(3072, 768, 128)),
    Target(LinearCase(4096, 4096, 128)),
    Target(LinearCase(1024, 1024, 128)),
    Target(LinearCase(256, 256, 128)),
    Target(LinearCase(4096, 4096, 32)),
    Target(LinearCase(4096, 4096, 1)),
    Target(LinearCase(1024, 1024, 1)),
    Target(LinearCase(768, 768, 1)),
    Target(LinearCase(256, 256, 1)),
    Target(LinearCase(4096, 4096, 1), cold=True),
    # A decoder's largest projection: 180 MB, so cold in any cache.
    Target(LinearCase(11008, 4096, 1), cold=True),
)

# What --quick keeps: a layer of every kind, small enough for a minute in all.
QUICK = (
    Target(ConvCase(256, 64, 56, 1)),
    Target(ConvCase(128, 128, 28, 3)),
    Target(LinearCase(768, 768, 1)),
    Target(LinearCase(1024, 1024, 128)),
)
QUICK_SPARSITIES = (0.8, 0.95)
