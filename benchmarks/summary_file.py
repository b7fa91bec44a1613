"""A JSON file of figures that several benchmarks have a part in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from onetrunk.files import atomic_write_text


def set_figures(path: Path, figures: Mapping[str, object]) -> None:
    """Set some keys of a file, and leave the others as they are. It is written aside and then moved.

    Args:
        path: The file, such as ``docs/results/fleet/summary.json``; it may not exist yet.
        figures: Key -> what stands for it in JSON.

    Raises:
        OneTrunkError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    atomic_write_text(path, json.dumps({**before, **figures}, indent=2) + "\n")
