"""How the gate before a reduced precision is passed. Known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GateRule:
    """What a task has to show. A repository's manifest has it, so that deployments go by what its build went by.

    Attributes:
        on: whether there is a gate.
        max_loss: points that a task may lose at most.
        rows: rows a task, a sample that is the same each time; 0 for all of them.
    """

    on: bool = True
    max_loss: float = 0.5
    rows: int = 1000


@dataclass(frozen=True)
class GateSettings(GateRule):
    """How the gate is passed.

    Attributes:
        task_dir: the folder of task files, which say where dev data are.
        data_root: where relative data files are looked for first.
    """

    task_dir: Path = Path("tasks")
    data_root: Path | None = None

    @property
    def rule(self) -> GateRule:
        """What of it is no matter of the machine."""
        return GateRule(self.on, self.max_loss, self.rows)


@dataclass(frozen=True)
class GateWish:
    """What a user says of the gate for a deployment; all else is as the repository was built.

    Attributes:
        max_loss: points that a head may lose at most, also where the build had no gate; None for the repository's rule.
        task_dir: as in GateSettings.
        data_root: as in GateSettings.
    """

    max_loss: float | None = None
    task_dir: Path = Path("tasks")
    data_root: Path | None = None

    def settle(self, rule: GateRule) -> GateSettings:
        """The settings for a repository that was built by this rule."""
        if self.max_loss is None:
            return GateSettings(rule.on, rule.max_loss, rule.rows, self.task_dir, self.data_root)
        return GateSettings(True, self.max_loss, rule.rows, self.task_dir, self.data_root)


DEFAULT_RULE = GateRule()
DEFAULT_GATE = GateSettings()
DEFAULT_WISH = GateWish()
