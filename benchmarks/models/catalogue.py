"""The models by name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.models import crepe, minilm, silero, smollm2, untrained
from benchmarks.models.workload import Workload

MODELS: dict[str, Callable[[], Workload]] = {
    "minilm": minilm.batch,
    "minilm-query": minilm.query,
    "silero-vad": silero.recording,
    "silero-vad-stream": silero.stream,
    "crepe": crepe.workload,
    "smollm2": smollm2.generation,
    "smollm2-prompt": smollm2.prompt,
    "gpt2": untrained.gpt2,
    "llama": untrained.llama,
    "llama-token": untrained.llama_token,
    "vit-b16": untrained.vit,
    "resnet50": untrained.resnet50,
    "mobilenetv2": untrained.mobilenetv2,
}
"""Trained ones first. A builder raises MissingPackageError where a package is not installed."""
