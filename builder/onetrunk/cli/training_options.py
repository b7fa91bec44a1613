"""What train-head, search-heads and refit-head have in common: arguments, options, progress, the table of results."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onetrunk.cli.console import print_table
from onetrunk.cli.data_options import (
    TRUNK_HELP,
    TRUNK_METAVAR,
    data_option,
    limbs_option,
    refuse_repeated,
    split_names,
    task_dir_option,
)
from onetrunk.progress import split_unit

if TYPE_CHECKING:
    from pydantic import ValidationError

    from onetrunk.progress import ProgressCallback
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks import Task
    from onetrunk.training import TrainResult

Command = TypeVar("Command", bound=Callable[..., Any])

# From so many train rows, what makes a training slow is worth a note.
_MANY_ROWS = 2_000
_TEXTS = ("task", "dev score")

_TASK_ARGUMENTS = (
    click.argument("tasks", nargs=-1, metavar="[TASK]..."),
    click.option("--tasks", "task_list", metavar="all|A,B", help="All tasks, or their names, separated by commas."),
)

_PRECISION_OPTION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="The trunk's data type on train texts (dev texts: fp32, as served); auto is bf16 where it is fast and "
    "accurate enough.",
)

_EXPERIMENT_OPTIONS = (
    click.option(
        "--trunk",
        metavar=TRUNK_METAVAR,
        help=f"The frozen encoder that all heads share. {TRUNK_HELP}",
    ),
    task_dir_option("The folder of task files."),
    data_option,
    click.option(
        "--cache",
        type=click.Path(path_type=Path, file_okay=False),
        help="The folder for hidden states and checkpoints. [default: $ONETRUNK_CACHE, or ~/.cache/onetrunk]",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto is cuda where there is a GPU.",
    ),
    click.option(
        "--skip-bad-rows",
        is_flag=True,
        help="Leave out rows that cannot be used, and say how many, instead of refusing the file.",
    ),
)

_HEADS_OPTION = click.option(
    "--heads",
    type=click.Path(path_type=Path, file_okay=False),
    default="heads",
    show_default=True,
    help="The folder of bundles.",
)

_BUNDLE_OPTIONS = (
    _HEADS_OPTION,
    click.option(
        "--results",
        type=click.Path(path_type=Path),
        metavar="FILE.md",
        help="Also write the table of results to this file.",
    ),
)


def task_arguments(command: Command) -> Command:
    """Add the tasks, by name or as ``--tasks``."""
    return _add(_TASK_ARGUMENTS, command)


def experiment_options(*, max_length: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the trunk, the data, the cache and the device.

    Args:
        max_length: What ``--max-length`` is by default, for its help.
    """
    longest = click.option(
        "--max-length", type=click.IntRange(3), help=f"Longest text in tokens. [default: {max_length}]"
    )
    return lambda command: _add((longest, *_EXPERIMENT_OPTIONS, _PRECISION_OPTION), command)


def refit_options(command: Command) -> Command:
    """Add the bundles, the trunk, the dev data, the cache and the device."""
    return _add((_HEADS_OPTION, limbs_option, *_EXPERIMENT_OPTIONS), command)


def bundle_options(command: Command) -> Command:
    """Add the places that heads and the table of results are written to."""
    return _add(_BUNDLE_OPTIONS, command)


def echo_notes(notes: Sequence[str]) -> None:
    """Print on stderr what a user should know about how the trunk was loaded, or about a training."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _add(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def option_error(error: ValidationError) -> UserError:
    """Return the first fault of a recipe that options make, by the name of its option."""
    from onetrunk.protocol.errors import UserError

    first = error.errors()[0]
    options = {one.name: one.opts[0] for one in click.get_current_context().command.params}
    key = str(first["loc"][0])
    return UserError(f"{options.get(key, key)} {first['input']:g} {first['msg'].removeprefix('Input ')}")


def load_named_tasks(
    arguments: Sequence[str], task_list: str | None, task_dir: Path, *, needs_data: bool = True
) -> list[Task]:
    """Load the tasks that were named.

    Args:
        arguments: Names of tasks, or paths of task files.
        task_list: The value of ``--tasks``.
        task_dir: The folder of task files.
        needs_data: Whether each must name train data.

    Raises:
        UserError: No task, an unknown one, or one twice was named, or a task file is wrong.
    """
    from onetrunk.protocol.errors import UserError

    listed = split_names(task_list or "")
    if listed == ["all"] and not arguments:
        return load_tasks(None, task_dir, needs_data=needs_data)
    names = [*arguments, *listed]
    if not names or "all" in names:
        raise UserError("name the tasks, or give --tasks all")
    refuse_repeated(names)
    return load_tasks(names, task_dir, needs_data=needs_data)


def load_tasks(names: Sequence[str] | None, task_dir: Path, *, needs_data: bool = True) -> list[Task]:
    """Load tasks by name or path; None loads all in the folder.

    Args:
        names: The names or paths.
        task_dir: The folder of task files.
        needs_data: Whether each must name train data.

    Raises:
        UserError: There is no such task, or a task file is wrong.
    """
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks import find_task, find_tasks, load_task

    files = find_tasks(task_dir) if names is None else [find_task(name, task_dir) for name in names]
    tasks = [load_task(file, needs_data=needs_data) for file in files]
    seen: dict[str, Path] = {}
    for task, file in zip(tasks, files, strict=True):
        if task.name in seen:
            raise UserError(f"{file}: its task {task.name} is also that of {seen[task.name]}")
        seen[task.name] = file
    return tasks


def check_data(tasks: Sequence[Task], data_root: Path | None, skip_bad_rows: bool) -> list[str]:
    """Read the data of tasks, so that a fault is told before torch is imported, which takes many times as long.

    Args:
        tasks: The tasks.
        data_root: The folder in which relative files are looked for first.
        skip_bad_rows: Whether rows that cannot be used may be left out.

    Returns:
        Notes on tasks whose kind makes their training slow.

    Raises:
        UserError: Data are not there, or have faults.
    """
    from onetrunk.tasks import read_examples
    from onetrunk.tasks.kinds import get_kind
    from onetrunk.tasks.records import SPLITS

    notes = []
    for task in tasks:
        # A task without train data has a teacher, and perhaps labelled dev data.
        splits = SPLITS if task.train else SPLITS[1:] if task.dev_share is None else ()
        for split in (*splits, *task.test_splits):
            rows = len(read_examples(task, split, data_root=data_root, skip_bad_rows=skip_bad_rows))
            if split == "train" and rows >= _MANY_ROWS and get_kind(task.kind).output.has_loops(task):
                notes.append(
                    f'{task.name}: output = "crf", the default, learns the tags of a text one after the other; '
                    f"with {rows:,} rows that takes long, and several times as long where others keep the cores busy: "
                    'OMP_NUM_THREADS=1 helps, and options = {output = "softmax"} in the task file is quicker'
                )
    return notes


def train_all(
    tasks: Sequence[str],
    prepare: Callable[[ProgressCallback], Callable[[str, ProgressCallback], TrainResult]],
    *,
    results: Path | None,
    as_json: bool,
) -> None:
    """Train one head after the other, and print the table of results.

    Args:
        tasks: The names of the tasks.
        prepare: Loads what all trainings need, and returns the function that trains one task.
        results: The Markdown file for the table; None writes none.
        as_json: Whether to print JSON in place of the table.

    Raises:
        UserError: A task, a recipe or the file's name is wrong.
        OneTrunkError: A training failed; the heads that are finished are kept and printed.
    """
    from onetrunk.training.results import check_report_path, write_report

    if results is not None:
        check_report_path(results)
    done: list[TrainResult] = []
    try:
        with _progress_bars(len(tasks)) as (begin, progress):
            train = prepare(progress)
            for name in tasks:
                begin(name)
                done.append(train(name, progress))
                _print_outcome(done[-1])
    finally:
        # What is finished is finished, also where a later task fails.
        if done:
            _print_results(done, as_json)
    if results is not None:
        from onetrunk.training.compute import describe_machine

        program = click.get_current_context().find_root().info_name or ""
        command = shlex.join([program, *sys.argv[1:]])
        write_report(results, done, command=command, machine=describe_machine())


@contextmanager
def _progress_bars(tasks: int) -> Iterator[tuple[Callable[[str], None], ProgressCallback]]:
    """Show two bars on stderr: the tasks, and the step that is running, with the time that it will still take.

    Yields the function to call when a task begins, and the one to call within it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # A file or a pipe gets only the lines about finished tasks.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        overall = bars.add_task("loading torch and the trunk", total=tasks)
        within = bars.add_task("", total=None, visible=False)
        begun = -1

        def begin(name: str) -> None:
            nonlocal begun
            begun += 1
            bars.update(overall, description=f"task {name}", completed=begun)

        def show(what: str, done: int, total: int) -> None:
            bar = bars.tasks[within]
            if total != bar.total or done < bar.completed:
                # Another step, with a speed of its own.
                bars.reset(within, total=total, completed=done, visible=True)
            bars.update(within, description=split_unit(what)[0], completed=done)

        yield begin, show


def _print_outcome(result: TrainResult) -> None:
    from onetrunk.training.results import judged_by

    spec = result.spec
    score = f"{spec.metric} {100 * result.score:.1f}{judged_by(spec)}"
    if result.already_there:
        click.echo(f"{spec.task}: finished earlier, {score} (--force trains it again)", err=True)
    else:
        trunk = f"{result.trunk_seconds:.0f} s of the trunk's pass and {result.cache_bytes / 1e6:.0f} MB are cached"
        click.echo(
            f"{spec.task}: {score}, trained in {result.train_seconds:.0f} s ({trunk}); wrote {result.bundle}", err=True
        )
    for note in result.notes:
        click.echo(f"{spec.task}: note: {note}", err=True)


def _print_results(results: Sequence[TrainResult], as_json: bool) -> None:
    from onetrunk.training.results import COLUMNS, CURVE_COLUMNS, as_values, curve_cells, row_cells

    if as_json:
        click.echo(json.dumps([as_values(result) for result in results], indent=2))
        return
    print_table(COLUMNS, [row_cells(result) for result in results], texts=_TEXTS)
    for result in results:
        if (curve := result.curve) is not None:
            click.echo()
            rows = [curve_cells(result.spec.task, curve.metric, point) for point in curve.points]
            print_table(CURVE_COLUMNS, rows, texts=_TEXTS)
