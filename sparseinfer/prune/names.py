"""How names pick weights, alike in a model and in a checkpoint."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["matches", "prefixes"]


def prefixes(name: str) -> list[str]:
    """The modules that a weight lies in, outermost first, and its own name.

    Example:
        >>> prefixes("encoder.0.weight")
        ['encoder', 'encoder.0', 'encoder.0.weight']
    """
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a weight: its full name, any module that it lies in, or a glob.

    Example:
        >>> [matches(text, "encoder.0.fc.weight") for text in ("encoder", "*.fc", "0", "enc")]
        [True, True, False, False]
    """
    return any(pattern == part or fnmatchcase(part, pattern) for part in prefixes(name))
