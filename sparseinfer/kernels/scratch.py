"""The memory that native kernels copy and pack into: how much there is, and giving it back."""

from __future__ import annotations

from sparseinfer import native

__all__ = ["release_scratch", "scratch_bytes"]


def scratch_bytes() -> int:
    """Return the bytes of scratch that all threads of this process hold for their next calls.

    A thread holds at most 20 MB, however large an image, a signal or a batch is (more only where
    16 columns of x take more than 16 MB, or a weight has more than a million rows).

    Example:
        >>> scratch_bytes() >= 0
        True
    """
    return native.scratch_bytes()


def release_scratch() -> None:
    """Give the scratch of every thread back to the system: of those at work, when their call ends.

    The next call of each thread allocates it again. Any thread may call this at any time.

    Example:
        >>> release_scratch()
        >>> scratch_bytes()
        0
    """
    native.release_scratch()
