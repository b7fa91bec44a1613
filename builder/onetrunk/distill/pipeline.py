"""A whole study: baselines, searches, a plan, and what proves it, as pieces of work side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from onetrunk.distill.choice import choose
from onetrunk.distill.cost_table import CostTable
from onetrunk.distill.jobs import LOCAL, Unit, run_jobs, run_unit
from onetrunk.distill.options import Option
from onetrunk.distill.plan_file import PlanFile, plan_file, read_plan, write_plan
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import save_baselines, seeds_of
from onetrunk.distill.trials import Trials, as_trial, load_trials, save_trials
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.training.experiment import Experiment, ExperimentConfig, open_experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import find_run

Told = Callable[[Unit | OneTrunkError], None]


@dataclass(frozen=True)
class Study:
    """Runs pieces of work of one study.

    Attributes:
        config: tasks, trunk, cache and records.
        settings: budgets.
        jobs: how many pieces at a time.
        backend: see ``run_jobs``.
    """

    config: ExperimentConfig
    settings: SearchSettings
    jobs: int = 1
    backend: str = LOCAL

    @property
    def experiment(self) -> Experiment:
        """The experiment, in this process."""
        return open_experiment(self.config)

    def trunk(self, tasks: Sequence[str]) -> list[Unit]:
        """The trunk's pass over each task's texts. Before all else: a search also reads other tasks' states."""
        return [Unit("trunk", task) for task in self._longest_first(tasks)]

    def baselines(self, tasks: Sequence[str]) -> list[Unit]:
        """Full fine-tuning of each task, with all seeds. Before its search, which goes no further than this is good."""
        return [
            Unit("baseline", task, seed)
            for task in self._longest_first(tasks)
            for seed in range(seeds_of(task, self.experiment, self.settings))
        ]

    def searches(self, tasks: Sequence[str]) -> list[Unit]:
        """The search of each task."""
        return [Unit("search", task) for task in self._longest_first(tasks)]

    def seeds(self, tasks: Sequence[str], plan: PlanFile) -> list[Unit]:
        """The other seeds of the heads that the plan chose."""
        units = []
        for task in self._longest_first(tasks):
            count = seeds_of(task, self.experiment, self.settings)
            units += [Unit("student", task, seed, spec) for seed, spec in self._students(task, plan, count)]
        return units

    def proofs(self, grid: Sequence[str], ablation: Sequence[str]) -> list[Unit]:
        """Full grids and ablations, of the tasks that are named."""
        return [Unit("grid", task) for task in self._longest_first(grid)] + [
            Unit("ablation", task) for task in self._longest_first(ablation)
        ]

    def run(self, units: Sequence[Unit], told: Told) -> list[OneTrunkError]:
        """Does pieces of work side by side, tells of each as it ends, and gives the errors of those that failed."""
        calls = [(unit, self.config, self.settings) for unit in units]
        errors = []
        for result in run_jobs(run_unit, calls, jobs=self.jobs, backend=self.backend):
            told(result)
            if isinstance(result, OneTrunkError):
                errors.append(result)
        return errors

    def save_baselines(self, tasks: Sequence[str]) -> None:
        """Writes down each task's baselines, of all seeds that there are."""
        for task in tasks:
            save_baselines(task, self.experiment, self.settings)

    def save_seeds(self, tasks: Sequence[str], plan_path: Path) -> None:
        """Writes down each chosen head's runs, of all seeds that there are, as ``<task>.seeds.json``."""
        plan = read_plan(plan_path)
        for task in tasks:
            if task not in plan.tasks:
                continue
            count = seeds_of(task, self.experiment, self.settings)
            specs = [(0, self._chosen(task, plan)), *self._students(task, plan, count)]
            trials = tuple(
                as_trial(record, "student", f"seed {seed}")
                for seed, spec in specs
                if (record := find_run(spec, self.experiment)) is not None
            )
            study = Trials(study="seeds", task=task, metric=self.experiment.task(task).metric, trials=trials)
            save_trials(self.config.runs, study)

    def _students(self, task: str, plan: PlanFile, count: int) -> Iterator[tuple[int, RunSpec]]:
        if task not in plan.tasks:
            return
        chosen = self._chosen(task, plan)
        for seed in range(1, count):
            yield seed, chosen.model_copy(update={"recipe": chosen.recipe.model_copy(update={"seed": seed})})

    def _chosen(self, task: str, plan: PlanFile) -> RunSpec:
        return self.experiment.store.by_key(plan.tasks[task].run).spec

    def _longest_first(self, tasks: Sequence[str]) -> list[str]:
        def size(task: str) -> int:
            return sum(len("".join(text)) for text in self.experiment.examples(task, "train").texts)

        return sorted(tasks, key=size, reverse=True)


def servable_options(runs: Path, tasks: Sequence[str]) -> list[Option]:
    """Every head of the search that could be served, with what full fine-tuning reached.

    These are students, one-layer forks, and teachers: a teacher of three layers on tap 3 is a head like any other.
    Probes are not: they are trained just long enough to compare taps.

    Args:
        runs: the folder of run records.
        tasks: of which tasks.

    Raises:
        UserError: a task has not been searched, or its baseline has not been trained, or has learned nothing.
    """
    baselines = {study.task: study for study in load_trials(runs, ["baseline"]) if study.trials}
    searches = {study.task: study for study in load_trials(runs, ["search"])}
    options = []
    for task in tasks:
        for name, found in (("searched", searches), ("fine-tuned as a whole", baselines)):
            if task not in found:
                raise UserError(f"task {task} has not been {name} yet; search again with all tasks")
        full = fmean(trial.score for trial in baselines[task].trials)
        if full <= 0:
            raise UserError(
                f"task {task}: full fine-tuning scores {full:.3f} by {baselines[task].metric} on the dev data, so "
                "there is nothing to keep a share of; give more dev rows or another metric"
            )
        options += _options(searches[task], full)
    return options


def make_plan(
    path: Path,
    options: Sequence[Option],
    table: CostTable,
    *,
    floor_task: float,
    floor_average: float,
    most_share: float | None,
) -> PlanFile:
    """Chooses the cheapest plan above the floors, and writes it. See ``choose`` for the arguments.

    A plan of other heads that is there already is kept beside it, as ``plan.toml.old``.
    """
    plan = choose(options, table.rates(), floor_task=floor_task, floor_average=floor_average, most_share=most_share)
    written = plan_file(plan, table, floor_task=floor_task, floor_average=floor_average, most_share=most_share)
    if path.is_file() and read_plan(path).tasks != written.tasks:
        os.replace(path, path.with_name(f"{path.name}.old"))
    write_plan(path, written)
    return written


def _options(search: Trials, full: float) -> list[Option]:
    return [
        Option(
            task=search.task,
            tap=recipe.resolved_tap,
            layers=recipe.layers,
            query=recipe.query,
            score=trial.score,
            full=full,
            run=trial.key,
            by_token=search.by_token or None,
        )
        for trial in search.trials
        if trial.stage != "probe" and not trial.stopped
        for recipe in (trial.spec.recipe,)
    ]
