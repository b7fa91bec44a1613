"""The heads of a study's plan, most of several layers: the teachers of shorter ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from onetrunk.nn.bundle import Bundle, load_bundle
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import HEAD_JSON

_MADE_BY = "search-heads make docs/results/quality/plan.toml --heads"


def load_teachers(folder: Path, tasks: Iterable[str], trunk: Trunk) -> dict[str, Bundle]:
    """Load the finished heads of some tasks.

    Args:
        folder: The folder of bundles.
        tasks: The tasks.
        trunk: The trunk that they stand on.

    Raises:
        UserError: One is not there, broken, or of another trunk.
    """
    missing = [task for task in tasks if not (folder / task / HEAD_JSON).exists()]
    if missing:
        raise UserError(f"{folder}: no head of {', '.join(missing)} is there: {_MADE_BY} {folder}")
    return {task: load_bundle(folder / task, trunk=trunk) for task in tasks}
