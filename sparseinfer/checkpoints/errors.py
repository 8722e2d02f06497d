"""The one exception that checkpoints raise."""

from __future__ import annotations

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, pruned or written; the message says why in one line."""
