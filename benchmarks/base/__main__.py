"""The base-size trunk's command: ``python -m benchmarks.base``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onetrunk.cli.data_options import data_option, split_names, task_dir_option
from onetrunk.cli.search_heads import fetch_trunk
from onetrunk.cli.search_output import print_plan
from onetrunk.cli.training_options import load_tasks
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError

if TYPE_CHECKING:
    from onetrunk.distill.settings import SearchSettings
    from onetrunk.progress import ProgressCallback
    from onetrunk.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "docs" / "results" / "base"
TRUNK = "base"
# The smallest first.
TASKS = ("rte", "mrpc", "cola", "stsb", "sst2", "qqp", "mnli", "qnli")
STEPS = ("full", "search")
FLOOR_TASK, FLOOR_AVERAGE = 0.97, 0.996
MAX_LENGTH = 128
# Of short and of long texts. The seed is one that no run has, so that they begin anew.
_SPEED_TASKS, _SPEED_STEPS, _SPEED_SEED = ("cola", "rte"), 5, 2**32 - 1
_SECONDS_BETWEEN_LINES = 30.0

_EPILOG = """\b
Examples:
  python -m benchmarks.base --tasks rte,mrpc         full fine-tuning and search of two tasks
  python -m benchmarks.base --tasks all --steps full --seeds 3
  python -m benchmarks.base --cost                   time trunk, heads and single-task models
  python -m benchmarks.base --make heads-base        bundles of the plan's heads
  python -m benchmarks.base --summary                plan, page and summary.json, from the records

\b
What has a record in the study's folder is not done again, whatever is left in the cache; a training
that was killed goes on from a checkpoint that is at most ten minutes old."""


@click.command(epilog=_EPILOG)
@click.option("--tasks", "task_list", metavar="all|A,B", help=f"Tasks to work on, in this order: {', '.join(TASKS)}.")
@click.option("--steps", default=",".join(STEPS), show_default=True, metavar="A,B", help="full, search, or both.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Seeds of full fine-tuning.")
@click.option("--speed", is_flag=True, help="Measure how fast this machine fine-tunes, for the hours that are left.")
@click.option("--cost", is_flag=True, help="Measure the cost of the parts, and of the plan where there is one.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds that costs are measured in."
)
@click.option(
    "--batches", default="1,8", show_default=True, metavar="A,B", help="Batch sizes that costs are measured at."
)
@click.option("--make", type=click.Path(path_type=Path, file_okay=False), help="Make the plan's heads in this folder.")
@click.option("--summary", is_flag=True, help="Only choose the plan and write the page and summary.json.")
@click.option(
    "--study", type=click.Path(path_type=Path, file_okay=False), default=STUDY, help="[default: docs/results/base]"
)
@task_dir_option("The folder of task files.")
@data_option
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Hidden states and checkpoints.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
def main(
    task_list: str | None,
    steps: str,
    seeds: int,
    speed: bool,
    cost: bool,
    rounds: int,
    batches: str,
    make: Path | None,
    summary: bool,
    study: Path,
    task_dir: Path,
    data: Path | None,
    cache: Path | None,
    device: Any,
) -> None:
    """Work on the paper's table for the trunk all-mpnet-base-v2: 12 layers of width 768."""
    with errors_end_command():
        names = chosen_tasks(task_list)
        wanted = _listed(steps, STEPS, "--steps")
        sizes = [int(size) for size in _listed(batches, [str(size) for size in range(1, 65)], "--batches")]
        if not (names or speed or cost or make or summary):
            raise UserError("nothing to do: give --tasks, --speed, --cost, --make or --summary")
        if names or speed or cost or make:
            from onetrunk.training.experiment import ExperimentConfig, open_experiment

            tell = progress_lines()
            fetch_trunk(TRUNK, tell)
            # All tasks, whatever is worked on: students also learn from the other tasks' texts.
            config = ExperimentConfig(
                tasks=tuple(load_tasks(TASKS, task_dir)),
                trunk=TRUNK,
                cache=cache,
                runs=study / "runs",
                data_root=data,
                device=device,
                trunk_dtype="bf16",
                max_length=MAX_LENGTH,
            )
            experiment = open_experiment(config)
            if speed:
                write_sizes(study, experiment, [time_steps(task, experiment, tell) for task in _SPEED_TASKS])
            for name in names:
                work_on(name, experiment, study, wanted, seeds, tell)
            if cost:
                measure(study, experiment, sizes, rounds, tell)
            if make:
                make_heads(study, experiment, make, tell)
        for path in write_report(study):
            click.echo(f"wrote {path}", err=True)


def chosen_tasks(task_list: str | None) -> list[str]:
    """Return the tasks that were asked for, in the study's order.

    Raises:
        UserError: There is no such task.
    """
    if task_list is None:
        return []
    asked = TASKS if task_list == "all" else _listed(task_list, TASKS, "--tasks")
    return [task for task in TASKS if task in asked]


def work_on(
    task: str, experiment: Experiment, study: Path, steps: Sequence[str], seeds: int, progress: ProgressCallback
) -> None:
    """Fine-tune the whole encoder on a task and search its heads, as far as that is not recorded yet.

    The plan and the page are written after each step, so that what is done can be kept at once.
    """
    from onetrunk.distill.task_search import run_baseline, save_baselines, search_task

    settings = _settings(experiment)
    if "full" in steps:
        for seed in range(seeds):
            run_baseline(task, experiment, settings, progress, seed=seed)
            save_baselines(task, experiment, settings)
            write_report(study)
    if "search" in steps:
        search_task(task, experiment, settings, progress)
        write_report(study)


def _settings(experiment: Experiment) -> SearchSettings:
    # In bf16 on every machine, whether it pays there or not: runs are found by their recipes.
    from onetrunk.distill.settings import SearchSettings

    return SearchSettings.for_width(experiment.trunk.width).model_copy(update={"mixed_precision": True})


def measure(
    study: Path, experiment: Experiment, batch_sizes: Sequence[int], rounds: int, progress: ProgressCallback
) -> None:
    """Time the parts at 128 tokens, then the plan beside single-task models, where there is a plan."""
    from benchmarks.base.report import write_plan_of
    from benchmarks.study.measured_cost import measure_plan_cost
    from onetrunk.distill.cost_measurement import measure_costs

    how: Any = {"tokens": (MAX_LENGTH,), "batch_size": batch_sizes, "repeats": rounds, "progress": progress}
    measure_costs(experiment.trunk, **how).write(study / "costs.json")
    plan = write_plan_of(study, floor_task=FLOOR_TASK, floor_average=FLOOR_AVERAGE)
    if plan is not None:
        heads = tuple((option.tap, option.layers, option.query) for option in plan.options)
        measure_plan_cost(heads, experiment.trunk, **how).write(study / "share.json")


def make_heads(study: Path, experiment: Experiment, heads: Path, progress: ProgressCallback) -> None:
    """Make the plan's heads; those whose weights are no longer in the cache are trained again.

    Raises:
        UserError: There is no plan yet.
    """
    from onetrunk.distill.plan_file import read_plan
    from onetrunk.distill.planned_heads import make_head

    if not (study / "plan.toml").is_file():
        raise UserError(f"{study}: there is no plan.toml yet; finish a task with --tasks and --cost first")
    plan = read_plan(study / "plan.toml")
    plan.check_trunk(experiment.trunk)
    for task in plan.tasks:
        make_head(task, plan, experiment, heads=heads, progress=progress)
    print_plan(plan, study / "plan.toml", as_json=False)


def time_steps(task: str, experiment: Experiment, progress: ProgressCallback) -> tuple[float, float]:
    """Time the first steps of a full fine-tuning; nothing is recorded.

    Args:
        task: The task that is fine-tuned.
        experiment: The trunk and the data.
        progress: Called after each step.

    Returns:
        The mean tokens of a step, and its mean seconds of processor time.
    """
    from onetrunk.distill.task_search import baseline_spec
    from onetrunk.training.states import epoch_batches
    from onetrunk.training.trainer import Trainer

    class EnoughError(Exception):
        pass

    times: list[float] = []

    def watch(what: str, done: int, total: int) -> None:
        progress(f"{task}: speed", done, _SPEED_STEPS + 1)
        times.append(time.process_time())
        if len(times) > _SPEED_STEPS:
            raise EnoughError

    settings = _settings(experiment)
    trainer = Trainer(baseline_spec(task, experiment, settings, seed=_SPEED_SEED), experiment)
    # A slow machine may have written one.
    trainer.checkpoint.remove()
    with suppress(EnoughError):
        trainer.train(progress=watch)
    trainer.checkpoint.remove()
    lengths = experiment.tokens(task, "train").lengths
    # The first step also allocates memory.
    steps = epoch_batches(lengths, settings.batch_size, seed=_SPEED_SEED, epoch=0)[1 : len(times)]
    return float(sum(lengths[rows].sum() for rows in steps)) / len(steps), (times[-1] - times[0]) / len(steps)


def write_sizes(study: Path, experiment: Experiment, timed: Sequence[tuple[float, float]]) -> None:
    """Write what the hours that are left are computed from: each task's rows and tokens, and what a step takes.

    Args:
        study: The study's folder.
        experiment: The trunk and the data.
        timed: Tokens and seconds of a step, of a task with short texts and of one with long texts. Between them, a step
            is taken to cost the same for every token, and something beside that: the optimizer, which passes over all
            weights whatever the texts are.
    """
    from onetrunk.files import atomic_write_text
    from onetrunk.tasks.records import SPLITS
    from onetrunk.training.compute import describe_machine

    (short, short_seconds), (long, long_seconds) = timed
    per_token = (long_seconds - short_seconds) / (long - short)
    sizes = {
        task: {
            f"{split}_{what}": int(value)
            for split in SPLITS
            for what, value in (
                ("rows", len(experiment.tokens(task, split).lengths)),
                ("tokens", experiment.tokens(task, split).lengths.sum()),
            )
        }
        for task in experiment.tasks
    }
    values = {
        "cpu_seconds_per_step": round(short_seconds - short * per_token, 3),
        "cpu_seconds_per_token": round(per_token, 6),
        "machine": describe_machine(),
        "load": round(os.getloadavg()[0], 1),
        "tasks": sizes,
    }
    atomic_write_text(study / "sizes.json", json.dumps(values, indent=1) + "\n")


def write_report(study: Path) -> list[Path]:
    """Write the plan over the finished tasks, the page and summary.json; see ``benchmarks.base.report``."""
    from benchmarks.base import report

    report.write_plan_of(study, floor_task=FLOOR_TASK, floor_average=FLOOR_AVERAGE)
    return report.write_base_report(study, TASKS)


def progress_lines() -> ProgressCallback:
    """Return a progress that prints a line now and then, as suits a log."""
    last = -_SECONDS_BETWEEN_LINES

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            click.echo(f"{time.strftime('%H:%M:%S')} {what}: {done:,} of {total:,}", err=True)

    return tell


def _listed(text: str, allowed: Sequence[str], option: str) -> list[str]:
    names = split_names(text)
    for name in names:
        if name not in allowed:
            raise UserError(f"{option} {name}: allowed are {', '.join(allowed)}")
    return names


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.base")
