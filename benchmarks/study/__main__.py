"""The study's command: ``python -m benchmarks.study``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onetrunk.cli.console import progress_line
from onetrunk.cli.search_heads import experiment_config
from onetrunk.cli.search_output import job_table
from onetrunk.cli.training_options import experiment_options, load_tasks
from onetrunk.protocol.command import errors_end_command

if TYPE_CHECKING:
    from onetrunk.distill.jobs import JobRunner

_EPILOG = """\b
Examples:
  python -m benchmarks.study grid --tasks cola,rte --study docs/results/quality
  python -m benchmarks.study ablation --tasks cola --study docs/results/quality --jobs 2
  python -m benchmarks.study cost docs/results/quality
  python -m benchmarks.study report docs/results/quality
  python -m benchmarks.study stopping docs/results/quality

\b
Everything is trained beside a search: search-heads run --study FOLDER comes first.
What was interrupted goes on when the command is given again."""

_tasks_option = click.option(
    "--tasks", "task_list", required=True, metavar="all|A,B", help="Tasks: all of the plan's, or names with commas."
)
_study_option = click.option(
    "--study",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="study",
    show_default=True,
    help="The folder of the search.",
)
_jobs_option = click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="How many trainings run at the same time."
)


@click.group(epilog=_EPILOG)
def study() -> None:
    """Train, measure and report what only the study of the paper needs."""


@study.command()
@_tasks_option
@_study_option
@_jobs_option
@experiment_options(max_length="128")
def grid(task_list: str, folder: Path, jobs: int, **options: Any) -> None:
    """Train a teacher on every tap to its end, to see what the search missed."""
    with errors_end_command(), _running(task_list, folder, jobs, options) as (runner, names):
        from benchmarks.study.trainings import run_grid
        from onetrunk.distill.jobs import Job

        runner.run([Job(name, "grid", run_grid) for name in names])


@study.command()
@_tasks_option
@_study_option
@_jobs_option
@experiment_options(max_length="128")
def ablation(task_list: str, folder: Path, jobs: int, **options: Any) -> None:
    """Change one part of distillation at a time, on each task's best teacher."""
    with errors_end_command(), _running(task_list, folder, jobs, options) as (runner, names):
        from benchmarks.study.trainings import run_ablation
        from onetrunk.distill.jobs import Job

        runner.run([Job(name, "ablation", run_ablation) for name in names])


@study.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--trunk", metavar="FOLDER|HUB-ID", help="The trunk. [default: all-MiniLM-L6-v2, from its package]")
@click.option("--tokens", default="32,64,128", show_default=True, metavar="A,B", help="Padded lengths.")
def cost(folder: Path, trunk: str | None, tokens: str) -> None:
    """Measure the cost of the plan in FOLDER beside single-task models in one run, and write share.json."""
    with errors_end_command(), progress_line() as progress:
        from benchmarks.study.measured_cost import measure_plan_cost
        from onetrunk.distill.plan_file import read_plan
        from onetrunk.nn.trunk import load_trunk

        plan, loaded = read_plan(folder / "plan.toml"), load_trunk(trunk)
        plan.check_trunk(loaded)
        heads = tuple((option.tap, option.layers, option.query) for option in plan.options)
        lengths = [int(length) for length in tokens.split(",")]
        measure_plan_cost(heads, loaded, tokens=lengths, progress=progress).write(folder / "share.json")


@study.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write the runs' curves for TensorBoard.",
)
def report(folder: Path, tensorboard: Path | None) -> None:
    """Rebuild README.md, summary.json and plots in FOLDER, with the acceptance criteria; trains nothing."""
    with errors_end_command():
        from benchmarks.study.report import write_quality_report

        for path in write_quality_report(folder, tensorboard=tensorboard):
            click.echo(f"wrote {path}", err=True)


@study.command()
@_tasks_option
@_study_option
@experiment_options(max_length="128")
@click.option(
    "--heads", type=click.Path(path_type=Path), default="heads", show_default=True, help="The folder of finished heads."
)
def linear(task_list: str, folder: Path, heads: Path, **options: Any) -> None:
    """Score a linear model on the embedding of each task's texts beside its head in heads/, and write linear.json."""
    with errors_end_command(), progress_line() as progress:
        from benchmarks.study.linear import compare_linear, measure_linear
        from onetrunk.training.experiment import open_experiment

        names = _chosen(task_list, folder)
        experiment = open_experiment(experiment_config(load_tasks(names, options["task_dir"]), folder, options))
        for name in names:
            found = compare_linear(name, experiment, heads, progress)
            measure_linear(folder, {name: found})
            click.echo(f"{name}: {100 * found.linear:.1f}", err=True)


@study.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def stopping(folder: Path) -> None:
    """Replay rules that stop teachers early on the recorded curves of the study in FOLDER; trains nothing."""
    with errors_end_command():
        from benchmarks.study.stopping import RULES, replay, teachers_of
        from onetrunk.cli.console import print_table
        from onetrunk.training.runs import RunStore

        teachers = teachers_of(RunStore(folder / "runs"))
        rows = []
        for name, rule in RULES.items():
            found = replay(teachers, rule)
            lost = ", ".join(f"{task} {100 * points:.1f}" for task, points in found.lost.items())
            rows.append((name, str(found.epochs), lost or "nothing"))
        count = sum(len(curves) for _, curves in teachers.values())
        title = f"{count} teachers of {len(teachers)} tasks, from the highest tap down"
        print_table(("rule", "epochs", "points that the best teacher loses"), rows, title=title, texts=("rule",))


@contextmanager
def _running(
    task_list: str, folder: Path, jobs: int, options: dict[str, Any]
) -> Iterator[tuple[JobRunner, Sequence[str]]]:
    """Show a table of jobs, and yield what runs them and the names of the chosen tasks.

    The experiment is the search's, with all its tasks: students also read other tasks' texts.
    """
    from onetrunk.distill.jobs import JobRunner, threads_for
    from onetrunk.distill.settings import SearchSettings
    from onetrunk.training.experiment import open_experiment

    names = _chosen(task_list, folder)
    config = experiment_config(load_tasks(_planned(folder), options["task_dir"]), folder, options)
    config = dataclasses.replace(config, threads=threads_for(jobs))
    with job_table(config, names) as (on_done, _):
        settings = SearchSettings.for_width(open_experiment(config).trunk.width)
        yield JobRunner(config, settings, jobs, on_done=on_done), names


def _planned(folder: Path) -> list[str]:
    from onetrunk.distill.plan_file import read_plan

    return sorted(read_plan(folder / "plan.toml").tasks)


def _chosen(task_list: str, folder: Path) -> list[str]:
    from onetrunk.protocol.errors import UserError

    planned = _planned(folder)
    names = planned if task_list == "all" else [name.strip() for name in task_list.split(",") if name.strip()]
    for name in names:
        if name not in planned:
            raise UserError(f"--tasks {name}: not in the plan of {folder}; allowed are {', '.join(planned)}")
    return names


if __name__ == "__main__":
    study(prog_name="python -m benchmarks.study")
