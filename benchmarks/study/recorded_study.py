"""All that a study left on disk, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.study.share import ShareReport
from onetrunk.distill.cost_table import CostTable
from onetrunk.distill.plan_file import PlanFile, read_plan
from onetrunk.distill.trials import Study, Trial, Trials, load_trials
from onetrunk.protocol.errors import UserError
from onetrunk.training.runs import RunRecord, RunSpec, RunStore

RUNS = "runs"


@dataclass(frozen=True)
class RecordedStudy:
    """A study's folder. What has not been measured yet is absent or None.

    Attributes:
        folder: where it was read from.
        records: key -> run.
        studies: study -> task -> its trials.
        plan: the chosen plan.
        costs: what the parts cost.
        share: what the plan's models cost, measured directly.
    """

    folder: Path
    records: Mapping[str, RunRecord]
    studies: Mapping[Study, Mapping[str, Trials]]
    plan: PlanFile | None = None
    costs: CostTable | None = None
    share: ShareReport | None = None

    @classmethod
    def read(cls, folder: Path) -> RecordedStudy:
        """Reads a folder.

        Raises:
            UserError: there is no such folder, or a file in it is broken.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a study, or run train-head --search first")
        runs, plan, costs, share = (folder / name for name in (RUNS, "plan.toml", "costs.json", "share.json"))
        return cls(
            folder=folder,
            records={record.key: record for record in RunStore(runs)},
            studies={name: {each.task: each for each in load_trials(runs, [name])} for name in get_args(Study)},
            plan=read_plan(plan) if plan.is_file() else None,
            costs=CostTable.read(costs) if costs.is_file() else None,
            share=ShareReport.read(share) if share.is_file() else None,
        )

    @property
    def runs(self) -> Path:
        """The folder of its run records."""
        return self.folder / RUNS

    @property
    def tasks(self) -> tuple[str, ...]:
        """The plan's tasks; before there is a plan, all that have been begun."""
        if self.plan is not None:
            return tuple(sorted(self.plan.tasks))
        return tuple(sorted({task for found in self.studies.values() for task in found}))

    def trials(self, study: Study, task: str) -> tuple[Trial, ...]:
        """The trials of one study of a task; none where it has not been done."""
        found = self.studies[study].get(task)
        return found.trials if found else ()

    def metric(self, task: str) -> str | None:
        """The metric of a task's scores."""
        return next((found[task].metric for found in self.studies.values() if task in found), None)

    def spec(self, key: str) -> RunSpec | None:
        """What a run was, by its record or by a trial of it."""
        if key in self.records:
            return self.records[key].spec
        trial = self._trial(key)
        return trial.spec if trial else None

    def score(self, key: str) -> float | None:
        """A run's best dev score, by its record or by a trial of it."""
        if key in self.records:
            return self.records[key].score
        trial = self._trial(key)
        return trial.score if trial else None

    @property
    def share_of_plan(self) -> ShareReport | None:
        """The direct measurement, where it was of this plan's heads and not of an earlier plan's."""
        if self.share is None or self.plan is None or self.share.trunk != self.plan.trunk:
            return None
        planned = sorted((head.tap, head.layers, head.query) for head in self.plan.tasks.values())
        return self.share if sorted(self.share.heads) == planned else None

    def _trial(self, key: str) -> Trial | None:
        trials = (trial for found in self.studies.values() for each in found.values() for trial in each.trials)
        return next((trial for trial in trials if trial.key == key), None)
