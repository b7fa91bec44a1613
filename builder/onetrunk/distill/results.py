"""The results of a search: what is recorded in its folder, and the figures that follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import get_args

from onetrunk.distill.costs import CostTable, PartCosts
from onetrunk.distill.frontier import frontier
from onetrunk.distill.pipeline import servable_options
from onetrunk.distill.plan import Option, Plan
from onetrunk.distill.plan_file import PlanFile, read_plan
from onetrunk.distill.trials import Study, Trial, Trials, load_trials
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.protocol.names import LimbId
from onetrunk.training.runs import RunRecord, RunSpec, RunStore

# Shares are quotients of floats: a plan that costs 0.25 must not miss a limit of 0.25 by a rounding error.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SearchRecords:
    """The contents of a search's folder. What has not been measured yet is absent or None.

    Attributes:
        folder: The folder that was read.
        runs: Run key -> record of that run.
        studies: Kind of study -> task -> its trials.
        plan: The chosen plan.
        costs: The measured costs of trunk and heads.
    """

    folder: Path
    runs: Mapping[str, RunRecord]
    studies: Mapping[Study, Mapping[str, Trials]]
    plan: PlanFile | None = None
    costs: CostTable | None = None

    @classmethod
    def read(cls, folder: Path) -> SearchRecords:
        """Read a search's folder: ``runs/``, ``plan.toml`` and ``costs.json``.

        Raises:
            UserError: The folder does not exist, or a file in it is malformed.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a search, or run search-heads run first")
        runs, plan, costs = (folder / name for name in ("runs", "plan.toml", "costs.json"))
        return cls(
            folder=folder,
            runs={record.key: record for record in RunStore(runs)},
            studies={name: {found.task: found for found in load_trials(runs, [name])} for name in get_args(Study)},
            plan=read_plan(plan) if plan.is_file() else None,
            costs=CostTable.read(costs) if costs.is_file() else None,
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The plan's tasks; without a plan, all tasks that have any trial."""
        if self.plan is not None:
            return tuple(sorted(self.plan.tasks))
        return tuple(sorted({task for by_task in self.studies.values() for task in by_task}))

    def trials(self, study: Study, task: str) -> tuple[Trial, ...]:
        """Return the trials of one study of a task, or an empty tuple where there are none."""
        found = self.studies[study].get(task)
        return found.trials if found else ()

    def metric(self, task: str) -> str | None:
        """Return the metric of a task's scores."""
        return next((by_task[task].metric for by_task in self.studies.values() if task in by_task), None)

    def spec(self, key: str) -> RunSpec | None:
        """Return what a run trained, from its record or from a trial that names it."""
        if key in self.runs:
            return self.runs[key].spec
        trial = self._trial(key)
        return trial.spec if trial else None

    def score(self, key: str) -> float | None:
        """Return a run's best dev score, from its record or from a trial that names it."""
        if key in self.runs:
            return self.runs[key].score
        trial = self._trial(key)
        return trial.score if trial else None

    def _trial(self, key: str) -> Trial | None:
        trials = (trial for by_task in self.studies.values() for each in by_task.values() for trial in each.trials)
        return next((trial for trial in trials if trial.key == key), None)


@dataclass(frozen=True)
class SeedScores:
    """The dev scores of one training repeated with several seeds, as shares; there is at least one."""

    scores: tuple[float, ...]

    @classmethod
    def of(cls, scores: Iterable[float]) -> SeedScores | None:
        """Collect scores; None where there are none."""
        found = tuple(scores)
        return cls(found) if found else None

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for a single seed."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.scores)


@dataclass(frozen=True)
class TaskResult:
    """The scores of one task: dev scores by its first metric, as shares. None is what has not been measured.

    Attributes:
        task: The task's name.
        metric: The metric.
        full: Full fine-tuning of the whole encoder.
        teacher: The run that the chosen head was distilled from; None also where the head learned from labels alone.
        student: The head that the plan chose, over all its seeds.
        unselected: The same without the run by whose score the plan chose the head, so free of selection bias.
        tap: The chosen head's tap.
        layers: The chosen head's number of layers.
        query: The query of the chosen head's folded layer.
        limb: The name of the limb that it stands on; None for the trunk itself.
    """

    task: str
    metric: str | None
    full: SeedScores | None
    teacher: float | None
    student: SeedScores | None
    unselected: SeedScores | None
    tap: int | None
    layers: int | None
    query: Query | None
    limb: str | None = None

    @classmethod
    def of(cls, task: str, records: SearchRecords) -> TaskResult:
        """Collect what is recorded about a task."""
        head = records.plan.tasks.get(task) if records.plan else None
        spec = records.spec(head.run) if head else None
        teacher = records.score(spec.distillation.teacher) if spec and spec.distillation else None
        students = _scores_of_all_seeds(spec, records) if spec else {}
        # The run is what counts: a plan's tap may have been changed by hand.
        recipe = spec.recipe if spec else head
        return cls(
            task=task,
            metric=records.metric(task),
            full=SeedScores.of(trial.score for trial in records.trials("baseline", task) if not trial.stopped),
            teacher=teacher,
            student=SeedScores.of(students.values()),
            unselected=SeedScores.of(score for key, score in students.items() if head and key != head.run),
            tap=recipe.tap if recipe else None,
            layers=recipe.layers if recipe else None,
            query=recipe.query if recipe else None,
            limb=LimbId.parse(spec.limb).name if spec and spec.limb else None,
        )

    @property
    def retention(self) -> float | None:
        """The share of full fine-tuning's score that the chosen head retains; None where that score is not above 0."""
        if self.full is None or self.student is None or not self.full.mean > 0:
            return None
        return self.student.mean / self.full.mean


@dataclass(frozen=True)
class TaskSearch:
    """The search of one task and its cost in CPU seconds.

    Attributes:
        task: The task's name.
        trials: Everything that was tried.
        seconds: The cost of all trials.
        trunk_seconds: The trunk's pass over the task's texts, which every run shares; not included in ``seconds``.
        full_seconds: One full fine-tuning, mean over seeds; None where there is none.
    """

    task: str
    trials: tuple[Trial, ...]
    seconds: float
    trunk_seconds: float
    full_seconds: float | None

    def count(self, stage: str, *, stopped: bool | None = None) -> int:
        """Count the trials of a stage: all, or only those that were stopped early (True) or were not (False)."""
        return sum(trial.stage == stage and stopped in (None, trial.stopped) for trial in self.trials)


@dataclass(frozen=True)
class SearchCost:
    """The cost of all searches together, in CPU seconds.

    Attributes:
        search_seconds: All searches.
        trunk_seconds: The trunk's passes over all texts.
        full_seconds: One full fine-tuning of each task.
    """

    search_seconds: float
    trunk_seconds: float
    full_seconds: float

    @property
    def ratio(self) -> float:
        """The searches as a multiple of one full fine-tuning of each task."""
        return self.search_seconds / self.full_seconds

    @property
    def ratio_with_trunk(self) -> float:
        """The same, with the trunk's passes counted as part of the search."""
        return (self.search_seconds + self.trunk_seconds) / self.full_seconds


@dataclass(frozen=True)
class PlanChoices:
    """The plans that the students of a search allow, at the costs of the cost table.

    Attributes:
        options: Every head that could be served.
        costs: The costs of the parts.
        chosen: The chosen plan; None where none has been chosen.
        frontier: Every plan that no other beats in both cost and quality, cheapest first.
    """

    options: Sequence[Option]
    costs: PartCosts
    chosen: Plan | None
    frontier: Sequence[Plan]

    @classmethod
    def of(cls, records: SearchRecords) -> PlanChoices:
        """Compute the frontier of a search, and the chosen plan's place beside it.

        Raises:
            UserError: Costs, searches or baselines are missing; the message says which.
        """
        if records.costs is None:
            raise UserError("the costs of trunk and heads have not been measured")
        if not records.tasks:
            raise UserError("no task has been searched")
        costs = records.costs.by_traffic(records.plan.traffic if records.plan is not None else None)
        options = servable_options(records.folder / "runs", records.tasks)
        chosen = None
        if records.plan is not None:
            # Full fine-tuning may have been given more seeds since the plan was written.
            full = {option.task: option.full for option in options}
            heads = [dataclasses.replace(option, full=full[option.task]) for option in records.plan.options]
            chosen = Plan.of(heads, costs)
        return cls(options, costs, chosen, frontier(options, costs))

    def best_within(self, share: float) -> Plan | None:
        """Return the frontier's best plan that costs at most this share of single-task models."""
        return next((plan for plan in reversed(self.frontier) if plan.share <= share + _TOLERANCE), None)


@dataclass(frozen=True)
class SearchResults:
    """The figures of a search. None is what has not been measured yet.

    Attributes:
        records: What they are computed from.
        tasks: The results, one per task.
        searches: The searches, one per task that has one.
        cost: The cost of the whole search; None until every task has a search and a full fine-tuning.
        choices: The chosen plan and the frontier.
        why_no_choices: What is missing for them.
    """

    records: SearchRecords
    tasks: Sequence[TaskResult]
    searches: Sequence[TaskSearch]
    cost: SearchCost | None
    choices: PlanChoices | None
    why_no_choices: str = ""

    @classmethod
    def of(cls, records: SearchRecords) -> SearchResults:
        """Compute the figures of a search, complete or under way."""
        choices, why = None, ""
        try:
            choices = PlanChoices.of(records)
        except UserError as error:
            why = str(error)
        found = records.studies["search"]
        searches = [_task_search(found[task], records) for task in records.tasks if task in found]
        tasks = [TaskResult.of(task, records) for task in records.tasks]
        return cls(records, tasks, searches, _search_cost(searches, records.tasks), choices, why)

    @property
    def retention_average(self) -> float | None:
        """The mean score over full fine-tuning's mean score; None until every task has both."""
        pairs = [(one.student.mean, one.full.mean) for one in self.tasks if one.student and one.full]
        if not self.tasks or len(pairs) < len(self.tasks) or not fmean(full for _, full in pairs) > 0:
            return None
        return kept_on_average(pairs)

    @property
    def worst(self) -> TaskResult | None:
        """The task with the lowest retention; None until every task has one."""
        retention = {result.task: result.retention for result in self.tasks if result.retention is not None}
        if not self.tasks or len(retention) < len(self.tasks):
            return None
        # NaN is worse than any number, and min() alone would lose it.
        return min(self.tasks, key=lambda result: (not math.isnan(retention[result.task]), retention[result.task]))

    @property
    def retention_min(self) -> float | None:
        """The retention of that task."""
        return self.worst.retention if self.worst else None

    @property
    def machines(self) -> list[str]:
        """The machines that runs and cost measurements were done on."""
        measured = [self.records.costs.machine] if self.records.costs else []
        return sorted({record.machine for record in self.records.runs.values()} | set(measured))


def kept_on_average(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the mean score over the mean score of full fine-tuning, which is what a plan's floor is of.

    Args:
        pairs: The two scores of each task.
    """
    scores, full = zip(*pairs, strict=True)
    return fmean(scores) / fmean(full)


def best_teacher(trials: Iterable[Trial]) -> Trial | None:
    """Return the best of the teachers that were trained to the end."""
    finished = [trial for trial in trials if trial.stage == "teacher" and not trial.stopped]
    return max(finished, key=lambda trial: trial.score, default=None)


def _scores_of_all_seeds(spec: RunSpec, records: SearchRecords) -> dict[str, float]:
    """Return key -> score of every finished run that differs from this one in its seed alone, ordered by seed.

    The folder may also hold seeds of a head that an earlier plan chose; these do not count.
    """
    wanted = spec.with_seed(0)
    found: dict[str, tuple[int, float]] = {}
    for study in ("search", "seeds"):
        for trial in records.trials(study, spec.task):
            if not trial.stopped and trial.spec.with_seed(0) == wanted:
                found[trial.key] = (trial.spec.recipe.seed, trial.score)
    return {key: score for key, (_, score) in sorted(found.items(), key=lambda item: item[1][0])}


def _task_search(search: Trials, records: SearchRecords) -> TaskSearch:
    baselines = [trial.cpu_seconds for trial in records.trials("baseline", search.task) if not trial.stopped]
    full = fmean(baselines) if baselines else None
    return TaskSearch(search.task, search.trials, search.cpu_seconds, search.trunk_cpu_seconds, full)


def _search_cost(searches: Sequence[TaskSearch], tasks: Sequence[str]) -> SearchCost | None:
    full = [search.full_seconds for search in searches if search.full_seconds is not None]
    # A ratio over some of the tasks would be another figure.
    if not searches or not len(full) == len(searches) == len(tasks):
        return None
    return SearchCost(
        search_seconds=sum(search.seconds for search in searches),
        trunk_seconds=sum(search.trunk_seconds for search in searches),
        full_seconds=sum(full),
    )
