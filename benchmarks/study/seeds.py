"""More seeds of a search's baselines and chosen heads, so that its report can say how far scores vary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from onetrunk.distill.jobs import Job, JobRunner
from onetrunk.distill.pipeline import longest_first
from onetrunk.distill.plan_file import read_plan
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import run_baseline, save_baselines
from onetrunk.distill.trials import Trials, as_trial, save_trials
from onetrunk.progress import ProgressCallback
from onetrunk.training.experiment import Experiment, open_experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute, find_run


def train_seeds(runner: JobRunner, plan_path: Path, seeds: int) -> None:
    """Train the baseline and the chosen head of every small task with more seeds, and write them as studies.

    Args:
        runner: Runs the trainings; its experiment is the search's.
        plan_path: The plan, which names the chosen heads.
        seeds: How often each is trained; once for large tasks.

    Raises:
        UserError: The plan is wrong, or a run that it names has no record.
        OneTrunkError: A training failed; what the others came to is kept.
    """
    experiment, plan = open_experiment(runner.config), read_plan(plan_path)
    tasks = [task for task in longest_first(experiment) if task in plan.tasks]
    runs: dict[str, list[RunSpec]] = {}
    for task in tasks:
        chosen = experiment.store.by_key(plan.tasks[task].run).spec
        small = len(experiment.examples(task, "train")) <= runner.settings.large
        runs[task] = [chosen.with_seed(seed) for seed in range(seeds if small else 1)]
    runner.run(
        [
            Job(task, f"baseline, seed {seed}", partial(run_baseline, seed=seed))
            for task in tasks
            for seed in range(len(runs[task]))
        ]
    )
    runner.run(
        [
            Job(task, f"student, seed {spec.recipe.seed}", partial(train_run, spec=spec))
            for task in tasks
            for spec in runs[task]
        ]
    )
    for task in tasks:
        save_baselines(task, experiment, runner.settings)
        _save_seeds(task, runs[task], experiment)


def train_run(
    task: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback, *, spec: RunSpec
) -> None:
    """Train a run as its spec says, as a job."""
    execute(spec, experiment, progress=progress)


def _save_seeds(task: str, runs: Sequence[RunSpec], experiment: Experiment) -> None:
    """Write the recorded runs of a chosen head, of all seeds, as ``<task>.seeds.json``."""
    trials = tuple(
        as_trial(record, "student", f"seed {spec.recipe.seed}")
        for spec in runs
        if (record := find_run(spec, experiment)) is not None
    )
    study = Trials(study="seeds", task=task, metric=experiment.task(task).metric, trials=trials)
    save_trials(experiment.config.runs, study)
