"""A whole study: baselines, searches, a plan, and what proves it, as pieces of work side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrunk.distill.baseline import save_baselines, seeds_of
from onetrunk.distill.jobs import LOCAL, run_jobs
from onetrunk.distill.plan_file import PlanFile, read_plan
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import Trials, as_trial, save_trials
from onetrunk.distill.units import Unit, run_unit
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.training.execute import find_run
from onetrunk.training.run_spec import RunSpec
from onetrunk.training.workbench import BenchSettings, Workbench, open_workbench

Told = Callable[[Unit | OneTrunkError], None]


@dataclass(frozen=True)
class Study:
    """Runs pieces of work of one study.

    Attributes:
        bench_settings: tasks, trunk, cache and records.
        settings: budgets.
        jobs: how many pieces at a time.
        backend: see ``run_jobs``.
    """

    bench_settings: BenchSettings
    settings: SearchSettings
    jobs: int = 1
    backend: str = LOCAL

    @property
    def bench(self) -> Workbench:
        """The workbench, in this process."""
        return open_workbench(self.bench_settings)

    def trunk(self, tasks: Sequence[str]) -> list[Unit]:
        """The trunk's pass over each task's texts. Before all else: a search also reads other tasks' states."""
        return [Unit("trunk", task) for task in self._longest_first(tasks)]

    def baselines(self, tasks: Sequence[str]) -> list[Unit]:
        """Full fine-tuning of each task, with all seeds. Before its search, which goes no further than this is good."""
        return [
            Unit("baseline", task, seed)
            for task in self._longest_first(tasks)
            for seed in range(seeds_of(task, self.bench, self.settings))
        ]

    def searches(self, tasks: Sequence[str]) -> list[Unit]:
        """The search of each task."""
        return [Unit("search", task) for task in self._longest_first(tasks)]

    def seeds(self, tasks: Sequence[str], plan: PlanFile) -> list[Unit]:
        """The other seeds of the heads that the plan chose."""
        units = []
        for task in self._longest_first(tasks):
            count = seeds_of(task, self.bench, self.settings)
            units += [Unit("student", task, seed, spec) for seed, spec in self._students(task, plan, count)]
        return units

    def run(self, units: Sequence[Unit], told: Told) -> list[OneTrunkError]:
        """Does pieces of work side by side, tells of each as it ends, and gives the errors of those that failed."""
        calls = [(unit, self.bench_settings, self.settings) for unit in units]
        errors = []
        for result in run_jobs(run_unit, calls, jobs=self.jobs, backend=self.backend):
            told(result)
            if isinstance(result, OneTrunkError):
                errors.append(result)
        return errors

    def save_baselines(self, tasks: Sequence[str]) -> None:
        """Writes down each task's baselines, of all seeds that there are."""
        for task in tasks:
            save_baselines(task, self.bench, self.settings)

    def save_seeds(self, tasks: Sequence[str], plan_path: Path) -> None:
        """Writes down each chosen head's runs, of all seeds that there are, as ``<task>.seeds.json``."""
        plan = read_plan(plan_path)
        for task in tasks:
            if task not in plan.tasks:
                continue
            count = seeds_of(task, self.bench, self.settings)
            specs = [(0, self._chosen(task, plan)), *self._students(task, plan, count)]
            trials = tuple(
                as_trial(record, "student", f"seed {seed}")
                for seed, spec in specs
                if (record := find_run(spec, self.bench)) is not None
            )
            study = Trials(study="seeds", task=task, metric=self.bench.task(task).metric, trials=trials)
            save_trials(self.bench_settings.runs, study)

    def _students(self, task: str, plan: PlanFile, count: int) -> Iterator[tuple[int, RunSpec]]:
        if task not in plan.tasks:
            return
        chosen = self._chosen(task, plan)
        for seed in range(1, count):
            yield seed, chosen.model_copy(update={"recipe": chosen.recipe.model_copy(update={"seed": seed})})

    def _chosen(self, task: str, plan: PlanFile) -> RunSpec:
        return self.bench.store.by_key(plan.tasks[task].run).spec

    def _longest_first(self, tasks: Sequence[str]) -> list[str]:
        def size(task: str) -> int:
            return sum(len("".join(text)) for text in self.bench.examples(task, "train").texts)

        return sorted(tasks, key=size, reverse=True)
