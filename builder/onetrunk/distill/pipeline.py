"""The search over all tasks: reference scores, the search of each task, measured costs, and one plan."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from onetrunk.distill.cost_measurement import measure_costs
from onetrunk.distill.costs import CostTable, Traffic
from onetrunk.distill.frontier import choose
from onetrunk.distill.jobs import LOCAL, Job, JobRunner, check_backend, threads_for
from onetrunk.distill.plan import Option
from onetrunk.distill.plan_file import PlanFile, plan_file, read_plan, write_plan
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import run_baseline, save_baselines, save_seeds, search_task
from onetrunk.distill.trials import Trials, load_trials
from onetrunk.machine import processor_name
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.tasks.records import SPLITS
from onetrunk.training.experiment import Experiment, ExperimentConfig, open_experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute_with_teacher

# Padded lengths at which costs are measured, besides the longest text.
_COST_TOKENS = (32, 64)


def search(
    config: ExperimentConfig,
    *,
    study: Path = Path("study"),
    settings: SearchSettings | None = None,
    floor_task: float = 0.97,
    floor_average: float = 0.996,
    most_share: float | None = None,
    traffic: Traffic | None = None,
    seeds: int = 1,
    jobs: int = 1,
    backend: str = LOCAL,
    on_done: Callable[[Job | OneTrunkError], None] = lambda result: None,
    progress: ProgressCallback = silent,
) -> PlanFile:
    """Search the heads of all tasks together, and write the plan that serves them at the least measured cost.

    For each task: full fine-tuning as the reference, probes of every tap, teachers on the best of them, and students
    distilled from these. With several seeds, full fine-tuning and the chosen heads of small tasks are trained once with
    each. What was done before is found, so a search that was killed goes on.

    Args:
        config: The tasks, the trunk and the cache. Its folder of run records is ``runs`` in the study's folder.
        study: The folder for run records, ``costs.json`` and ``plan.toml``.
        settings: The budgets of the search; None is the defaults for the trunk.
        floor_task: The least share of full fine-tuning's score that every task keeps.
        floor_average: The same for the mean over the tasks.
        most_share: The greatest cost, as a share of as many single-task models; None allows any.
        traffic: What is asked, which weighs the costs; its lengths are those of ``cost_lengths``. None weighs all of
            these alike, and asks all tasks about every text.
        seeds: The number of seeds that full fine-tuning and the chosen heads are trained with; large tasks get one.
        jobs: The number of trainings at a time.
        backend: Where they run: ``local``, ``ray`` or ``ray://HOST:PORT``.
        on_done: Called with each job that is done, and with the error of each that failed.
        progress: Called as costs are measured.

    Returns:
        The plan. Its ``kept.note`` says where it misses a floor.

    Raises:
        UserError: A task, the trunk, or an argument is not valid.
        OneTrunkError: A job failed; what the others came to is kept.
    """
    check_backend(backend)
    config = study_config(config, study, jobs=jobs, backend=backend)
    experiment = open_experiment(config)
    if config.trunk_dtype == "auto" and backend == LOCAL:
        # Measured once: each process would measure anew, beside the others' work, and runs are found by the outcome.
        config = dataclasses.replace(config, trunk_dtype=experiment.compute.trunk_dtype)
        experiment = open_experiment(config)
    settings = settings or SearchSettings.for_width(experiment.trunk.width)
    runner = JobRunner(config, settings, jobs, backend, on_done)
    tasks = longest_first(experiment)
    # All states first: a search also reads other tasks' states. Then the baselines: a search stops at their scores.
    runner.run([Job(task, "trunk", cache_states) for task in tasks])
    counts = {task: seeds if len(experiment.examples(task, "train")) <= settings.large else 1 for task in tasks}
    runner.run(
        [
            Job(task, f"baseline, seed {seed}", partial(run_baseline, seed=seed))
            for task in tasks
            for seed in range(counts[task])
        ]
    )
    runner.run([Job(task, "search", search_task) for task in tasks])
    for task in tasks:
        save_baselines(task, experiment, settings)
    plan = make_plan(
        study / "plan.toml",
        servable_options(config.runs, tasks),
        current_costs(study / "costs.json", experiment, progress),
        traffic=traffic,
        floor_task=floor_task,
        floor_average=floor_average,
        most_share=most_share,
    )
    chosen = {task: experiment.store.by_key(plan.tasks[task].run).spec for task in tasks}
    # The search has trained every head with seed 0.
    runner.run(
        [
            Job(task, f"student, seed {seed}", partial(_train_run, spec=chosen[task].with_seed(seed)))
            for task in tasks
            for seed in range(1, counts[task])
        ]
    )
    for task in tasks:
        save_seeds(chosen[task], experiment)
    return plan


def study_config(config: ExperimentConfig, study: Path, *, jobs: int = 1, backend: str = LOCAL) -> ExperimentConfig:
    """Return a configuration with its run records in the study's folder, and its threads shared out among the jobs.

    Args:
        config: The configuration.
        study: The study's folder.
        jobs: The number of jobs at a time.
        backend: Where they run.
    """
    return dataclasses.replace(config, runs=study / "runs", threads=config.threads or threads_for(jobs, backend))


def longest_first(experiment: Experiment) -> list[str]:
    """Return the experiment's tasks, those with the most train text first, so that no long job is left for the end."""

    def size(task: str) -> int:
        return sum(len("".join(text)) for text in experiment.examples(task, "train").texts)

    return sorted(experiment.tasks, key=size, reverse=True)


def cache_states(task: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback) -> None:
    """Compute a task's hidden states at every tap below the top into the cache.

    Args:
        task: The task.
        experiment: The trunk, the data and the cache.
        settings: The budgets of the search; this job needs none.
        progress: Called as the trunk's pass goes on.
    """
    for split in SPLITS:
        experiment.states(task, split, range(experiment.trunk.depth), progress)


def _train_run(
    task: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback, *, spec: RunSpec
) -> None:
    """Train a run as its spec says, as a job."""
    execute_with_teacher(spec, experiment, progress)


def current_costs(path: Path, experiment: Experiment, progress: ProgressCallback = silent) -> CostTable:
    """Read the measured costs, or measure and write them where the file is missing or of another trunk or machine.

    Args:
        path: The file of the cost table.
        experiment: The trunk, and the longest text.
        progress: Called after every round of the measurement.

    Raises:
        UserError: The file is not a cost table.
        OneTrunkError: The file cannot be written.
    """
    lengths = cost_lengths(experiment.config.max_length)
    if path.is_file():
        table = CostTable.read(path)
        measured = {bucket.tokens for bucket in table.buckets}
        if (table.trunk, table.machine, measured) == (experiment.trunk.identity, processor_name(), set(lengths)):
            return table
    table = measure_costs(experiment.trunk, tokens=lengths, progress=progress)
    table.write(path)
    return table


def cost_lengths(max_length: int) -> tuple[int, ...]:
    """Return the padded lengths to measure costs at: some short ones, and the longest text."""
    return (*(length for length in _COST_TOKENS if length < max_length), max_length)


def servable_options(runs: Path, tasks: Sequence[str]) -> list[Option]:
    """Return every head of the search that could be served, with the score of full fine-tuning.

    These are students, one-layer forks, and teachers: a teacher of three layers on tap 3 is a head like any other.
    Probes are not: they are trained just long enough to compare taps.

    Args:
        runs: The folder of run records.
        tasks: The tasks.

    Raises:
        UserError: A task has not been searched, its baseline has not been trained, or the baseline learned nothing.
    """
    baselines = {study.task: study for study in load_trials(runs, ["baseline"]) if study.trials}
    searches = {study.task: study for study in load_trials(runs, ["search"])}
    options = []
    for task in tasks:
        for name, found in (("searched", searches), ("fine-tuned as a whole", baselines)):
            if task not in found:
                raise UserError(f"task {task} has not been {name} yet; search again with all tasks")
        full = fmean(trial.score for trial in baselines[task].trials)
        if not full > 0:  # NaN is nothing to keep a share of
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
    traffic: Traffic | None = None,
) -> PlanFile:
    """Choose the cheapest plan above the floors, and write it.

    An existing plan with other heads is kept beside the new one, as ``plan.toml.old``.

    Args:
        path: The plan file.
        options: The heads to choose from.
        table: The measured costs.
        floor_task: The least share of full fine-tuning's score that every task keeps.
        floor_average: The same for the mean over the tasks.
        most_share: The greatest cost, as a share of as many single-task models; None allows any.
        traffic: What is asked; None weighs all measured lengths and all tasks alike.

    Raises:
        UserError: There is nothing to choose from, or a floor or the share is not above 0.
        OneTrunkError: The file cannot be written.
    """
    plan = choose(
        options,
        table.by_traffic(traffic),
        floor_task=floor_task,
        floor_average=floor_average,
        most_share=most_share,
    )
    written = plan_file(
        plan, table, floor_task=floor_task, floor_average=floor_average, most_share=most_share, traffic=traffic
    )
    if path.is_file() and not _has_heads_of(path, written):
        shutil.copyfile(path, path.with_name(f"{path.name}.old"))
    write_plan(path, written)
    return written


def _has_heads_of(path: Path, plan: PlanFile) -> bool:
    """Return whether a plan file has the same heads. One that was changed by hand may not be readable."""
    try:
        there = read_plan(path).tasks
    except UserError:
        return False
    return {task: one.run for task, one in there.items()} == {task: one.run for task, one in plan.tasks.items()}


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
            limb=trial.spec.limb or "",
        )
        for trial in search.trials
        if trial.stage != "probe" and not trial.stopped
        for recipe in (trial.spec.recipe,)
    ]
