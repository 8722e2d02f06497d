"""Settings that all tests share."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

# Networks are built from configurations that lie in the package: nothing is downloaded.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Tests measure anew and leave the user's kept comparisons alone; those of the cache name a folder.
os.environ["SPARSEINFER_CACHE"] = "off"

# Kernels are called under whatever load the machine has, so a deadline would only make tests flaky;
# a fixed seed makes a failure on one machine the failure on every machine.
hypothesis.settings.register_profile(
    "sparseinfer",
    deadline=None,
    derandomize=True,
    max_examples=30,
    database=None,
    # The fixtures here hold nothing that an example could change.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("sparseinfer")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)
