"""The shapes, sparsities and patterns that are measured."""

from __future__ import annotations

from dataclasses import dataclass

from sparseinfer.formats import BY_SHAPE, kblock_for

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
TOKENS = (1, 8, 128, 512)
LARGE_N = 128
"""Smallest N of the throughput table; below it a layer is bound by reading its weights."""


@dataclass(frozen=True)
class LinearCase:
    """A linear layer: y[M, N] = W[M, K] x[K, N], N tokens."""

    m: int
    k: int
    n: int

    op = "linear"

    @property
    def name(self) -> str:
        """Name in result files and tables."""
        return f"linear {self.m}x{self.k} N={self.n}"

    @property
    def group(self) -> str:
        """Group the case belongs to in tables and plots."""
        return f"linear N>={LARGE_N}" if self.n >= LARGE_N else f"linear N={self.n}"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, [M, K]."""
        return (self.m, self.k)

    @property
    def kblock(self) -> int:
        """Option of the panel format, as `convert_to_sparse` chooses it for inputs of N tokens."""
        return kblock_for(self.n)


@dataclass(frozen=True)
class ConvCase:
    """A square convolution of a square image, batch 1, padded by half the kernel."""

    c: int
    """Input channels."""
    m: int
    size: int
    """Height and width of the input in pixels."""
    kernel: int
    stride: int = 1

    op = "conv"

    @property
    def padding(self) -> int:
        """Zeros added on every side, in pixels."""
        return self.kernel // 2

    @property
    def out_size(self) -> int:
        """Height and width of the output in pixels."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def k(self) -> int:
        """Columns of the weight seen as a matrix."""
        return self.c * self.kernel**2

    @property
    def n(self) -> int:
        """Output pixels."""
        return self.out_size**2

    @property
    def name(self) -> str:
        """Name in result files and tables."""
        channels = f"{self.c}" if self.c == self.m else f"{self.c}->{self.m}"
        image = f"@{self.size}" if self.stride == 1 else f"@{self.size}->{self.out_size}"
        stride = "" if self.stride == 1 else f" stride {self.stride}"
        return f"conv {self.kernel}x{self.kernel}{stride} {channels} {image}"

    @property
    def group(self) -> str:
        """Group the case belongs to in tables and plots."""
        return f"conv {self.kernel}x{self.kernel}"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, [M, C, kh, kw]."""
        return (self.m, self.c, self.kernel, self.kernel)

    kblock = BY_SHAPE


Case = LinearCase | ConvCase


@dataclass(frozen=True)
class Pattern:
    """Which weights are zero: a random ``sparsity`` of them, or as many in a structure.

    That is n of every m columns kept, or ``block`` output rows x input columns pruned together, or
    whole ``channels``: rows, inputs (input channels) or both.
    """

    sparsity: float
    n_of_m: tuple[int, int] | None = None
    block: tuple[int, int] | None = None
    channels: str = ""

    @staticmethod
    def n_m(n: int, m: int) -> Pattern:
        """Return the pattern that keeps n of every m neighbouring input channels."""
        return Pattern(1 - n / m, (n, m))

    @property
    def name(self) -> str:
        """Name in result files and tables."""
        if self.n_of_m is not None:
            return "{}:{}".format(*self.n_of_m)
        if self.block is not None:
            return "block {}x{}".format(*self.block)
        return f"channels: {self.channels}" if self.channels else "unstructured"


UNSTRUCTURED = tuple(Pattern(sparsity) for sparsity in SPARSITIES)
N_OF_M = (Pattern.n_m(2, 4), Pattern.n_m(1, 4), Pattern.n_m(1, 8))

BLOCKS = ((4, 1), (8, 1), (16, 1))
CHANNELS = ("rows", "inputs", "both")
STRUCTURED_SPARSITIES = (0.5, 0.75, 0.9)
STRUCTURED = tuple(
    pattern
    for sparsity in STRUCTURED_SPARSITIES
    for pattern in (
        Pattern(sparsity),
        *(Pattern(sparsity, block=block) for block in BLOCKS),
        *(Pattern(sparsity, channels=which) for which in CHANNELS),
        *(Pattern.n_m(n, m) for n, m in ((2, 4), (4, 8), (1, 4)) if 1 - n / m == sparsity),
    )
)
"""Structures beside random zeros of the same sparsity."""

# BERT-base and a decoder's projection: the shapes whose geometric mean the project promises.
PROMISED_SHAPES = ((768, 768), (3072, 768), (768, 3072), (4096, 4096))
OTHER_SHAPES = ((1024, 1024), (256, 256))

LINEAR = tuple(LinearCase(m, k, n) for m, k in (*PROMISED_SHAPES, *OTHER_SHAPES) for n in TOKENS)

# The convolutions of ResNet-50 at 224 x 224.
CONV = (
    ConvCase(64, 64, 56, 3),
    ConvCase(128, 128, 28, 3),
    ConvCase(256, 256, 14, 3),
    ConvCase(512, 512, 7, 3),
    ConvCase(128, 128, 56, 3, stride=2),
    ConvCase(64, 256, 56, 1),
    ConvCase(256, 64, 56, 1),
    ConvCase(512, 128, 28, 1),
    ConvCase(128, 512, 28, 1),
    ConvCase(1024, 256, 14, 1),
    ConvCase(256, 1024, 14, 1),
    ConvCase(512, 2048, 7, 1),
    ConvCase(2048, 512, 7, 1),
)

COLD = (LinearCase(4096, 4096, 1), LinearCase(11008, 4096, 1))


def promised(case: Case) -> bool:
    """Return whether the case belongs to the throughput table: N >= 128 of the promised shapes."""
    if isinstance(case, ConvCase):
        return True
    return case.n >= LARGE_N and (case.m, case.k) in PROMISED_SHAPES


KERNELS: tuple[Case, ...] = (*LINEAR, *CONV)
PROMISED = tuple(case for case in KERNELS if promised(case))

FORMATS: tuple[Case, ...] = (
    LinearCase(768, 768, 1),
    LinearCase(768, 768, 128),
    LinearCase(3072, 768, 128),
    LinearCase(4096, 4096, 1),
    LinearCase(4096, 4096, 128),
    ConvCase(128, 128, 28, 3),
    ConvCase(256, 64, 56, 1),
)

PATTERNS: tuple[Case, ...] = (
    LinearCase(768, 768, 1),
    LinearCase(768, 768, 8),
    LinearCase(768, 768, 128),
    ConvCase(128, 128, 28, 3),
    ConvCase(256, 64, 56, 1),
)

NON_ZEROS = (1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)
LINEARITY_SPARSITY = 0.5
"""So few zeros that the dense weight of the largest layer, 800 MB, still fits."""


def _square(non_zeros: float, n: int) -> LinearCase:
    """Return the square layer, in steps of 16 rows, with about so many non-zeros."""
    side = 16 * round((non_zeros / (1 - LINEARITY_SPARSITY)) ** 0.5 / 16)
    return LinearCase(side, side, n)


LINEARITY = tuple(_square(count, n) for count in NON_ZEROS for n in (1, 8, LARGE_N))

# What --quick keeps: one case of every kind, small enough for three minutes in all.
QUICK_SPARSITIES = (0.0, 0.5, 0.8, 0.9)
QUICK: frozenset[Case] = frozenset(
    (
        LinearCase(768, 768, 1),
        LinearCase(768, 768, 8),
        LinearCase(768, 768, 128),
        LinearCase(3072, 768, 128),
        LinearCase(4096, 4096, 1),
        ConvCase(64, 64, 56, 3),
        ConvCase(128, 128, 28, 3),
        ConvCase(512, 512, 7, 3),
        ConvCase(128, 128, 56, 3, stride=2),
        ConvCase(256, 64, 56, 1),
        ConvCase(256, 1024, 14, 1),
        *(case for case in LINEARITY if case.m * case.k < 1e7),
    )
)
