"""The callback through which long-running work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all.

What is being done may end with a unit, as in ``fetching base, in MB``; see ``split_unit``.
"""

_UNIT = ", in "


def split_unit(what: str) -> tuple[str, str]:
    """Return what is being done without its unit, and the unit; an empty one if there is none."""
    name, found, unit = what.rpartition(_UNIT)
    return (name, unit) if found else (what, "")


def progress_counts(done: int, total: int, unit: str) -> str:
    """Return how much is done of how much, such as ``13,632 of 419,247 tokens``."""
    return f"{done:,} of {total:,} {unit}".rstrip()


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
