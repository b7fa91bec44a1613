"""``search-heads``: which head for which task, and the heads of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onetrunk.cli.console import progress_line, typed_options
from onetrunk.cli.data_options import limbs_option
from onetrunk.cli.search_output import job_table, print_notes, print_plan
from onetrunk.cli.training_options import (
    bundle_options,
    check_data,
    echo_notes,
    experiment_options,
    load_named_tasks,
    load_tasks,
    task_arguments,
    train_all,
)
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import counted

if TYPE_CHECKING:
    from onetrunk.distill.costs import Traffic
    from onetrunk.distill.plan_file import PlanFile
    from onetrunk.progress import ProgressCallback
    from onetrunk.tasks import Task
    from onetrunk.training import TrainResult
    from onetrunk.training.experiment import Experiment, ExperimentConfig

# Longest text in tokens, where --max-length is not given.
_MAX_LENGTH = 128
# As 0.97, not 97; a head may well keep more than all.
_SHARE = click.FloatRange(0, 2, min_open=True)

# Parameters of run that only a plan, or several trainings at a time, have a use for.
_OF_A_PLAN = ("floor_average", "floor_task", "most_share", "seeds", "jobs", "backend", "limbs", "traffic")

_EPILOG = """\b
Examples:
  search-heads run --tasks all --quick     two heads a task in minutes, the better one kept
  search-heads run --tasks all --jobs 2    search all tasks, and write study/plan.toml
  search-heads make                        make the heads of study/plan.toml
  search-heads report                      tables and plots of the search

\b
A search that was killed continues when the same command is given again. The plan is
a file for you to read and change. Next: build-repo --tasks all."""


@click.group(epilog=_EPILOG)
def search_heads() -> None:
    """Search for the best head for each task, and make the heads of the resulting plan.

    The search varies how deep in the trunk a head begins (tap) and how many layers it has. The plan takes, of all heads
    that were tried, those that keep enough of full fine-tuning's score at the least measured cost.
    """


@search_heads.command(
    epilog="""\b
Examples:
  search-heads run --tasks all --jobs 2
  search-heads run my/spam.toml --quick
  search-heads run cola rte --floor 0.99 --study my-study
  search-heads run --tasks all --seeds 3 --jobs 2
  search-heads run --tasks all --jobs 8 --backend ray
  search-heads run --tasks all --limb limbs/pairs
  search-heads run --tasks all --traffic asked.jsonl   the plan for what is really asked

\b
Next: search-heads make; after --quick, build-repo."""
)
@task_arguments
@click.option(
    "--quick",
    is_flag=True,
    help="Compare all taps, train one layer on the best and two on the one below, and write the better head. "
    "No full fine-tuning, no teachers, no plan.",
)
@click.option(
    "--heads",
    type=click.Path(path_type=Path, file_okay=False),
    default="heads",
    show_default=True,
    help="With --quick, the folder of bundles.",
)
@click.option(
    "--study",
    type=click.Path(path_type=Path, file_okay=False),
    default="study",
    show_default=True,
    help="The folder for run records, costs.json and plan.toml.",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="How many trainings run at the same time."
)
@click.option(
    "--backend",
    default="local",
    show_default=True,
    metavar="local|ray|ray://HOST:PORT",
    help="Where the trainings run; Ray needs pip install 'onetrunk[cluster]'.",
)
@click.option(
    "--floor",
    "floor_average",
    type=_SHARE,
    default=0.996,
    show_default=True,
    help="Share of full fine-tuning's score that the plan keeps on average.",
)
@click.option(
    "--task-floor",
    "floor_task",
    type=_SHARE,
    default=0.97,
    show_default=True,
    help="Share of full fine-tuning's score that every task keeps in the plan.",
)
@click.option(
    "--most-share",
    type=_SHARE,
    help="Greatest cost of the plan, as a share of one single-task model per task. [default: any]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How often full fine-tuning and the chosen heads are trained; tasks of more than 8,600 rows: once.",
)
@click.option(
    "--limb",
    "limbs",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also try heads of one layer on this limb, as train-limb has written it. May be given several times.",
)
@click.option(
    "--traffic",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Texts as they are asked, which weigh the plan's costs: by their lengths, and by the names in a column tasks. "
    "[default: all measured lengths alike, all tasks about every text]",
)
@experiment_options(max_length=str(_MAX_LENGTH))
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def run(
    tasks: tuple[str, ...],
    task_list: str | None,
    task_dir: Path,
    quick: bool,
    heads: Path,
    study: Path,
    jobs: int,
    backend: str,
    floor_average: float,
    floor_task: float,
    most_share: float | None,
    seeds: int,
    limbs: tuple[Path, ...],
    traffic: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for the best heads, and write a plan.

    For each task: full fine-tuning as the reference, probes of every tap, teachers on the best of them, and students
    distilled from these. TASK is the name of a file in the task folder, or a path to a task file.
    """
    with errors_end_command():
        chosen = load_named_tasks(tasks, task_list, task_dir)
        _check_quick(quick)
        echo_notes(check_data(chosen, options["data"], options["skip_bad_rows"]))
        _print_recipes(chosen)
        if quick:
            _search_quickly(chosen, study, heads, as_json, options)
            return
        from onetrunk.distill.jobs import check_backend  # imports torch

        check_backend(backend)
        limbs = tuple(one.resolve() for one in limbs)
        identities = _identities(limbs)
        if limbs:
            options["limbs"] = (limbs[0].parent,)
        config = experiment_config(chosen, study, options)
        names = [task.name for task in chosen]
        with progress_line() as show:
            fetch_trunk(config.trunk, show, config.cache)
        with job_table(config, names) as (on_done, progress):
            from onetrunk.distill.pipeline import search, study_config
            from onetrunk.distill.settings import SearchSettings
            from onetrunk.training.experiment import open_experiment

            # The same that the search opens, which is opened once.
            opened = open_experiment(study_config(config, study, jobs=jobs, backend=backend))
            echo_notes(opened.trunk.notes)
            for identity in identities:
                opened.branch(identity)  # one that does not fit the trunk is told before anything is trained
            asked = _read_traffic(traffic, names, opened)
            _print_time(opened, names, seeds)
            settings = SearchSettings.for_width(opened.trunk.width).model_copy(update={"limbs": identities})
            plan = search(
                config,
                study=study,
                settings=settings,
                floor_task=floor_task,
                floor_average=floor_average,
                most_share=most_share,
                traffic=asked,
                seeds=seeds,
                jobs=jobs,
                backend=backend,
                on_done=on_done,
                progress=progress,
            )
        print_notes(config.runs, names)
        print_plan(plan, study / "plan.toml", as_json)


def _read_traffic(file: Path | None, tasks: Sequence[str], experiment: Experiment) -> Traffic | None:
    """Count what is asked, before anything is trained, and say on stderr which lines were left out."""
    from onetrunk.distill.pipeline import cost_lengths
    from onetrunk.distill.traffic import read_traffic

    if file is None:
        return None
    found, notes = read_traffic(file, tasks, experiment.trunk, cost_lengths(experiment.config.max_length))
    for note in notes:
        click.echo(f"note: {note}", err=True)
    return found


def _identities(limbs: Sequence[Path]) -> tuple[str, ...]:
    """Return the identities of limbs, which must lie in one folder, so that every process finds them there."""
    from onetrunk.nn.limb import load_limb
    from onetrunk.protocol.errors import UserError

    if others := [one for one in limbs if one.parent != limbs[0].parent]:
        raise UserError(f"--limb {others[0]}: limbs of one search lie in one folder; the first is in {limbs[0].parent}")
    return tuple(dict.fromkeys(str(load_limb(one).identity) for one in limbs))


def _check_quick(quick: bool) -> None:
    """Refuse options that a search without a plan has no use for, and ``--heads`` for one with a plan."""
    from onetrunk.protocol.errors import UserError

    typed = typed_options()
    names = {"floor_average": "--floor", "floor_task": "--task-floor", "limbs": "--limb"}
    if quick:
        unused = [name for name in _OF_A_PLAN if name in typed]
        if unused:
            name = names.get(unused[0], f"--{unused[0].replace('_', '-')}")
            raise UserError(f"{name}: --quick makes no plan and trains one head after the other: leave one of them out")
    elif "heads" in typed:
        raise UserError(
            "--heads: a search writes a plan, and search-heads make its heads; with --quick it writes heads"
        )


def _print_recipes(tasks: Sequence[Task]) -> None:
    """Say whose recipes are not followed: a search tries heads of many forms, with recipes for each."""
    if named := [task.name for task in tasks if task.recipe.model_fields_set]:
        click.echo(
            f"note: [recipe] in the task file of {', '.join(named)} is for train-head: a search has recipes of its own",
            err=True,
        )


def _search_quickly(tasks: Sequence[Task], study: Path, heads: Path, as_json: bool, options: dict[str, Any]) -> None:
    config = experiment_config(tasks, study, options)

    def prepare(progress: ProgressCallback) -> Callable[[str, ProgressCallback], TrainResult]:
        from onetrunk.distill.quick import quick_head
        from onetrunk.distill.settings import SearchSettings
        from onetrunk.training.experiment import open_experiment

        fetch_trunk(config.trunk, progress, config.cache)
        experiment = open_experiment(config)
        echo_notes(experiment.trunk.notes)
        settings = SearchSettings.for_width(experiment.trunk.width)
        _print_time(experiment, [task.name for task in tasks], 1, quick=True)
        return lambda name, progress: quick_head(name, experiment, settings, heads=heads, progress=progress)

    train_all([task.name for task in tasks], prepare, results=None, as_json=as_json)


def _print_time(experiment: Experiment, tasks: Sequence[str], seeds: int, *, quick: bool = False) -> None:
    """Say on stderr what a search will run, how long that takes here, and how long the other one would."""
    from onetrunk.distill.quick import LEFT_OUT, estimate_time
    from onetrunk.distill.settings import SearchSettings
    from onetrunk.distill.trials import load_trials

    done = {study.task for study in load_trials(experiment.config.runs, ["search"]) if study.complete}
    left = [task for task in tasks if task not in done]
    if not left:
        return
    settings = SearchSettings.for_width(experiment.trunk.width)
    found = estimate_time(left, experiment, settings, seeds=seeds)
    search, short = (_duration(one) for one in (found.search_seconds, found.quick_seconds))
    count = counted(len(left), "task", "tasks")
    here = "here, by a few batches that were timed"
    # On a trunk that is soon fine-tuned as a whole, there is nothing to be saved.
    saves = found.quick_seconds < found.search_seconds
    if quick:
        other = f"about {search}" if saves else "no longer, and it finds more"
        text = (
            f"quick search of {count}: probes of taps 0 to {experiment.trunk.depth - 1}, then one layer on the best "
            f"and two on the tap below, no full fine-tuning, about {short} {here}; the search without --quick: {other}"
        )
    else:
        text = f"search of {count}: full fine-tuning, probes, teachers and students, about {search} {here}"
        if saves:
            text += f"; --quick, which leaves out {LEFT_OUT}: about {short}"
    click.echo(text, err=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@search_heads.command(
    epilog="""\b
Examples:
  search-heads make
  search-heads make my-study/plan.toml --heads my-heads

\b
Next: build-repo --tasks all."""
)
@click.argument("plan", type=click.Path(path_type=Path), metavar="[PLAN.toml]", required=False)
@click.option(
    "--study",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the search that the plan comes from. [default: the plan's own]",
)
@experiment_options(max_length="the plan's own")
@bundle_options
@limbs_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def make(
    plan: Path | None, study: Path | None, task_dir: Path, results: Path | None, as_json: bool, **options: Any
) -> None:
    """Make the heads of a plan.

    Each run that the plan chose becomes the bundle of its task. PLAN.toml is that in the folder of --study, or
    study/plan.toml, where it is not given.
    A run whose weights are no longer in the cache is trained again.
    """
    with errors_end_command():
        from onetrunk.distill.plan_file import read_plan

        plan = plan or (study or Path("study")) / "plan.toml"
        planned = read_plan(plan)
        tasks = load_tasks(list(planned.tasks), task_dir)
        train_all(
            [task.name for task in tasks],
            lambda progress: _maker(planned, tasks, study or plan.parent, options, progress),
            results=results,
            as_json=as_json,
        )


@search_heads.command(
    epilog="""\b
Examples:
  search-heads report
  search-heads report --study my-study --tensorboard curves"""
)
@click.option(
    "--study",
    type=click.Path(path_type=Path, file_okay=False),
    default="study",
    show_default=True,
    help="The folder of a search.",
)
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write the runs' curves for TensorBoard.",
)
def report(study: Path, tensorboard: Path | None) -> None:
    """Write tables and plots of a search.

    They are made from its records and written into its folder; nothing is trained.
    """
    with errors_end_command():
        from onetrunk.distill import write_report

        for path in write_report(study, tensorboard=tensorboard):
            click.echo(f"wrote {path}", err=True)


def _maker(
    plan: PlanFile, tasks: Sequence[Task], study: Path, options: dict[str, Any], progress: ProgressCallback
) -> Callable[[str, ProgressCallback], TrainResult]:
    from onetrunk.distill.planned_heads import make_head, planned_length
    from onetrunk.tasks.head_spec import limbs_of
    from onetrunk.training.experiment import open_experiment

    max_length = options["max_length"] or planned_length(plan, study / "runs")
    limbs = limbs_of(options["heads"], options["limbs"])
    config = experiment_config(tasks, study, {**options, "max_length": max_length, "limbs": limbs})
    fetch_trunk(config.trunk, progress, config.cache)
    experiment = open_experiment(config)
    echo_notes(experiment.trunk.notes)
    plan.check_trunk(experiment.trunk)
    return lambda name, progress: make_head(name, plan, experiment, heads=options["heads"], progress=progress)


def fetch_trunk(trunk: str | Path | None, progress: ProgressCallback, cache: Path | None = None) -> None:
    """Fetch a trunk that is not on this machine yet, once for all processes of a search, and say so."""
    from onetrunk.nn.trunk_source import find_trunk

    if (note := find_trunk(trunk, progress, cache=cache).note) is not None:
        echo_notes([note])


def experiment_config(tasks: Sequence[Task], study: Path, options: dict[str, Any]) -> ExperimentConfig:
    """Return the experiment of a study from the command's options.

    Args:
        tasks: The tasks.
        study: The study's folder.
        options: The values of ``experiment_options``.
    """
    from onetrunk.tasks.head_spec import DEFAULT_LIMBS
    from onetrunk.training.experiment import ExperimentConfig

    return ExperimentConfig(
        tasks=tuple(tasks),
        trunk=options["trunk"],
        cache=options["cache"],
        runs=study / "runs",
        data_root=options["data"],
        device=options["device"],
        trunk_dtype=options["precision"],
        max_length=options["max_length"] or _MAX_LENGTH,
        skip_bad_rows=options["skip_bad_rows"],
        limbs=options.get("limbs", (DEFAULT_LIMBS,)),
    )
