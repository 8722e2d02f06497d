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

# What is printed is as wide as in a file: tables fold where a shell exports its width, or
# pytest-xdist does.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is `sampled(n)`, n cases spread over all of them are quick, the rest slow."""
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            name = getattr(item, "originalname", item.name)
            cases.setdefault((item.path.name, name), []).append(item)
    for all_cases in cases.values():
        marker = all_cases[0].get_closest_marker("sampled")
        assert marker is not None
        (count,) = marker.args
        # One more each time, so that they differ in every parameter.
        quick = {(i * len(all_cases) // count + i) % len(all_cases) for i in range(count)}
        for i, item in enumerate(all_cases):
            if i not in quick:
                item.add_marker(pytest.mark.slow)
