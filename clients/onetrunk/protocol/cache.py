"""The root folder of everything that is kept only to save time, and may be removed."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "ONETRUNK_CACHE"


def cache_root(given: Path | None = None) -> Path:
    """Return the root folder of all caches: as given, from the variable ONETRUNK_CACHE, or the user's own."""
    if given is not None:
        return given
    variable = os.environ.get(CACHE_VARIABLE)
    if variable:
        return Path(variable)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onetrunk"
