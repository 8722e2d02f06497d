"""What the demo found: every number, as dataclasses that become JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sparseinfer.demo.training import Curve
from sparseinfer.timing.rounds import Quartiles, Rounds

# A smaller difference is not called one, and neither is one that the quartiles do not bear out.
NOTABLE = 1.03


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call: median and quartiles of the rounds."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int

    @staticmethod
    def of(found: Rounds, name: str) -> Latency:
        """The latency of one of the calls that took turns."""
        seconds = found.timing(name).seconds
        return Latency(1e3 * seconds.median, 1e3 * seconds.q1, 1e3 * seconds.q3, found.rounds)


@dataclass(frozen=True)
class Ratio:
    """How many times faster one model is than another.

    Median and quartiles of the ratio of the two times of one round.
    """

    median: float
    low: float
    high: float

    @staticmethod
    def of(figures: Quartiles) -> Ratio:
        """The ratio of the figures of every round."""
        return Ratio(figures.median, figures.q1, figures.q3)


@dataclass(frozen=True)
class Speed:
    """Latency at one batch size, keyed "dense", "dense int8", "pruned", "converted" and "int8".

    Dense and pruned ran in the faster of torch's two memory formats, named in `layout`. "int8" is
    the pruned network converted with int8 weights; "dense int8", torch's quantisation of the dense
    one, and `int8_over_dense_int8` are missing where this build of torch has none.
    """

    batch: int
    latency: dict[str, Latency]
    layout: dict[str, str]
    over_dense: Ratio
    over_pruned: Ratio
    all_layouts: dict[str, Latency]
    int8_over_dense_int8: Ratio | None


@dataclass(frozen=True)
class Int8:
    """The pruned network converted with int8 weights, beside torch's dense int8 network.

    `layers` of it run in int8, whose scales were found on `calibration_images`. `missing` says why
    there is no dense int8 network, whose size on disk is then None.
    """

    calibration_images: int
    layers: int
    agreement: Agreement
    disk: int
    dense_disk: int | None
    missing: str
    report: dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Bytes of the pruned model and of the converted one, in memory and saved."""

    pruned_memory: int
    converted_memory: int
    pruned_disk: int
    converted_disk: int


@dataclass(frozen=True)
class Agreement:
    """How the converted model's answers compare with the pruned model's on every test image."""

    images: int
    different_classes: int
    largest_logit_difference: float


@dataclass(frozen=True)
class Results:
    """Everything the demo reports; accuracies and sparsities are fractions."""

    dataset: str
    source: str
    train_images: int
    available_train_images: int
    test_images: int
    parameters: int
    prunable_weights: int
    pruned_weights: int
    sparsity: float
    dense_steps: int
    prune_steps: int
    curve: Curve
    accuracy: dict[str, float]
    agreement: Agreement
    speeds: list[Speed]
    sizes: Sizes
    int8: Int8
    report: dict[str, Any]
    seed: int
    threads: int
    machine: str
    versions: dict[str, str]
    seconds: dict[str, float]

    @property
    def verdict(self) -> str:
        """Whether the model got faster, in plain words."""
        return " ".join(_verdict_at(speed) for speed in self.speeds)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers."""
        return {**asdict(self), "verdict": self.verdict}


def int8_loss(results: Results) -> float:
    """Points of accuracy, of 100, that the int8 sparse network is below the float32 sparse one."""
    return 100 * (results.accuracy["converted"] - results.accuracy["int8"])


def _verdict_at(speed: Speed) -> str:
    pruned, converted = speed.latency["pruned"].median_ms, speed.latency["converted"].median_ms
    word = {"faster": "got faster", "slower": "did NOT get faster", "even": "is as fast as before"}
    return (
        f"At batch {speed.batch} it {word[word_of(speed.over_pruned)]}: "
        f"{speed.over_pruned.median:.2f}x ({pruned:.3g} ms to {converted:.3g} ms)."
    )


def gain(ratio: Ratio) -> str:
    """Return the ratio with its meaning, such as "1.50x faster".

    Example:
        >>> gain(Ratio(1.5, 1.4, 1.6))
        '1.50x faster'
    """
    words = {"faster": "faster", "slower": "(slower)", "even": "(even)"}
    return f"{ratio.median:.2f}x {words[word_of(ratio)]}"


def word_of(ratio: Ratio) -> str:
    """Return "faster", "slower" or "even"."""
    if ratio.median > NOTABLE and ratio.low > 1.0:
        return "faster"
    if ratio.median < 1.0 / NOTABLE and ratio.high < 1.0:
        return "slower"
    return "even"
