"""How the gate before a reduced precision is applied. Importing it loads no torch, so that a rollback does not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from onetrunk.protocol.manifest import GateRule


@dataclass(frozen=True)
class GateSettings(GateRule):
    """The gate's rule and the data on which it is applied.

    Attributes:
        task_dir: The folder of task files, which say where the dev data are.
        data_root: The folder in which relative data files are looked for first.
    """

    task_dir: Path = Path("tasks")
    data_root: Path | None = None

    @property
    def rule(self) -> GateRule:
        """The part that does not depend on the machine."""
        return GateRule(self.on, self.max_loss, self.rows, self.runtime)


@dataclass(frozen=True)
class GateOverrides:
    """What a deployment changes of the rule by which the repository was built.

    Attributes:
        max_loss: The points that a head may lose at most, also if the build had no gate; None keeps the rule.
        task_dir: As in `GateSettings`.
        data_root: As in `GateSettings`.
    """

    max_loss: float | None = None
    task_dir: Path = Path("tasks")
    data_root: Path | None = None

    def apply(self, rule: GateRule) -> GateSettings:
        """Return the settings for a repository that was built by this rule."""
        judged = rule if self.max_loss is None else dataclasses.replace(rule, on=True, max_loss=self.max_loss)
        return GateSettings(**dataclasses.asdict(judged), task_dir=self.task_dir, data_root=self.data_root)


DEFAULT_GATE = GateSettings()


NO_OVERRIDES = GateOverrides()
