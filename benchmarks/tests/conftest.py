"""The settings of the package's own tests."""

from tests.conftest import _same_random_numbers

__all__ = ["_same_random_numbers"]
