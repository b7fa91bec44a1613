"""How the gate before a reduced precision is passed. Known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onetrunk.protocol.manifest import GateRule


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


DEFAULT_GATE = GateSettings()
DEFAULT_WISH = GateWish()
