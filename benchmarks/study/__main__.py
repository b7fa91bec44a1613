"""The study's command: ``python -m benchmarks.study``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from onetrunk.cli.console import errors_end_command, progress_line
from onetrunk.cli.data_options import data_option, task_dir_option

Command = TypeVar("Command", bound=Callable[..., Any])

_EPILOG = """\b
Examples:
  python -m benchmarks.study grid --tasks cola,rte --study docs/results/quality
  python -m benchmarks.study ablation --tasks cola --study docs/results/quality --jobs 2
  python -m benchmarks.study seeds --tasks all --seeds 3 --study docs/results/quality
  python -m benchmarks.study cost docs/results/quality
  python -m benchmarks.study report docs/results/quality

\b
Everything is trained beside a search: search-heads --study FOLDER comes first.
What was interrupted goes on when the command is given again."""

_TRAINING_OPTIONS = (
    click.option("--tasks", required=True, metavar="all|A,B", help="Tasks: all of the plan's, or names with commas."),
    click.option(
        "--study",
        type=click.Path(path_type=Path, file_okay=False),
        default="study",
        show_default=True,
        help="The folder of the search.",
    ),
    task_dir_option("The folder of task files."),
    data_option,
    click.option("--trunk", metavar="FOLDER|HUB-ID", help="The trunk. [default: all-MiniLM-L6-v2, from its package]"),
    click.option(
        "--cache",
        type=click.Path(path_type=Path, file_okay=False),
        help="The folder of cached states and checkpoints. [default: $ONETRUNK_CACHE, or ~/.cache/onetrunk]",
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True),
    click.option("--max-length", type=click.IntRange(3), default=128, show_default=True, help="As in the search."),
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trainings side by side."),
)


def _training_options(command: Command) -> Command:
    for option in reversed(_TRAINING_OPTIONS):
        command = option(command)
    return command


@click.group(epilog=_EPILOG)
def study() -> None:
    """Train, measure and report what only the study of the paper needs."""


@study.command()
@_training_options
def grid(**options: Any) -> None:
    """Train a teacher on every tap to its end, to see what the search missed."""
    with errors_end_command():
        _train("grid", options)


@study.command()
@_training_options
def ablation(**options: Any) -> None:
    """Change one part of distillation at a time, on each task's best teacher."""
    with errors_end_command():
        _train("ablation", options)


@study.command()
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Seeds of tasks of small size.")
@_training_options
def seeds(seeds: int, **options: Any) -> None:
    """Train full fine-tuning and the plan's heads with more seeds (small tasks only)."""
    with errors_end_command():
        from onetrunk.distill.plan_file import read_plan
        from onetrunk.distill.settings import SearchSettings
        from onetrunk.distill.study import Study

        plan_path = options["study"] / "plan.toml"
        plan = read_plan(plan_path)
        tasks = _task_names(options)
        search = Study(_bench_settings(options), SearchSettings(seeds=seeds), options["jobs"])
        _finish(search.run([*search.baselines(tasks), *search.seeds(tasks, plan)], _print_result))
        search.save_baselines(tasks)
        search.save_seeds(tasks, plan_path)


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


def _train(training: str, options: dict[str, Any]) -> None:
    from benchmarks.study.trainings import run_training
    from onetrunk.distill.jobs import run_jobs
    from onetrunk.distill.settings import SearchSettings

    bench_settings = _bench_settings(options)
    calls = [(training, task, bench_settings, SearchSettings()) for task in _task_names(options)]
    errors = []
    for result in run_jobs(run_training, calls, jobs=options["jobs"]):
        _print_result(result)
        errors += [result] if isinstance(result, Exception) else []
    _finish(errors)


def _print_result(result: object) -> None:
    click.echo(f"failed: {result}" if isinstance(result, Exception) else f"done: {result}", err=True)


def _finish(errors: Sequence[Exception]) -> None:
    if errors:
        raise errors[0]


def _task_names(options: dict[str, Any]) -> list[str]:
    from onetrunk.distill.plan_file import read_plan
    from onetrunk.protocol.errors import UserError

    planned = sorted(read_plan(options["study"] / "plan.toml").tasks)
    if options["tasks"] == "all":
        return planned
    names = [name.strip() for name in options["tasks"].split(",") if name.strip()]
    for name in names:
        if name not in planned:
            raise UserError(f"--tasks {name}: not in the plan of {options['study']}; it has {', '.join(planned)}")
    return names


def _bench_settings(options: dict[str, Any]) -> Any:
    """Return the workbench of the search: all its tasks, since students also read other tasks' texts."""
    from onetrunk.distill.jobs import threads_for
    from onetrunk.distill.plan_file import read_plan
    from onetrunk.tasks import find_task, load_task
    from onetrunk.training.workbench import BenchSettings

    names = sorted(read_plan(options["study"] / "plan.toml").tasks)
    return BenchSettings(
        tasks=tuple(load_task(find_task(name, options["task_dir"])) for name in names),
        trunk=options["trunk"],
        cache=options["cache"],
        runs=options["study"] / "runs",
        data_root=options["data"],
        device=options["device"],
        precision=options["precision"],
        max_length=options["max_length"],
        threads=threads_for(options["jobs"]),
    )


if __name__ == "__main__":
    study(prog_name="python -m benchmarks.study")
