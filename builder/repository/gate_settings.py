"""How the gate before a reduced precision is passed. Known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GateSettings:
    """How the gate is passed.

    Attributes:
        on: whether there is one.
        max_loss: points that a task may lose at most.
        rows: rows a task, a sample that is the same each time; 0 for all of them.
        task_dir: the folder of task files, which say where dev data are.
        data_root: where relative data files are looked for first.
    """

    on: bool = True
    max_loss: float = 0.5
    rows: int = 1000
    task_dir: Path = Path("tasks")
    data_root: Path | None = None


DEFAULT_GATE = GateSettings()
