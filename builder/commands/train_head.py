"""``train-head``: labelled text in, bundles out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from builder.commands.console import errors_end_command

if TYPE_CHECKING:
    from builder.tasks import Recipe, Task
    from builder.training import TrainResult

_EPILOG = """\b
Examples:
  train-head sst2                              by the recipe in tasks/sst2.toml
  train-head --tasks all                       every task in tasks/
  train-head cola --tap 2 --layers 3 --lr 1e-4 the same data, another head
  train-head my/spam.toml                      a task of your own

\b
A task of your own is a CSV with a header, or JSON lines, and a file like spam.toml:
  labels = ["ham", "spam"]
  train = "train.csv"
  dev = "dev.csv"
Columns are sentence, sentence2 (for form = "pair") and label; text_field = "..."
names another.

\b
The trunk runs once per text; its states are kept under --cache. A run that was
killed goes on. Next: build-repo --tasks all."""


@click.command(epilog=_EPILOG)
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@click.option("--tasks", "task_list", metavar="all|A,B", help="Tasks: all of them, or names with commas.")
@click.option("--tap", type=click.IntRange(0), help="Trunk layers below the head. [default: the task's recipe]")
@click.option("--layers", type=click.IntRange(1), help="The head's own layers. [default: the task's recipe]")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the train data. [default: the task's recipe]")
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate. [default: the task's recipe]")
@click.option("--batch-size", type=click.IntRange(1), help="Texts a step. [default: the task's recipe]")
@click.option("--seed", type=click.IntRange(0), help="Same seed, same weights. [default: the task's recipe]")
@click.option("--max-length", type=click.IntRange(3), help="Longest text in tokens. [default: the task's recipe]")
@click.option("--trunk", metavar="FOLDER|HUB-ID", help="The trunk. [default: all-MiniLM-L6-v2, from its package]")
@click.option(
    "--task-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="tasks",
    show_default=True,
    help="The folder of task files.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where data files are looked for first. [default: $ONETRUNK_DATA]",
)
@click.option(
    "--heads",
    type=click.Path(path_type=Path, file_okay=False),
    default="heads",
    show_default=True,
    help="The folder of bundles.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where states and checkpoints are kept. [default: $ONETRUNK_CACHE, or ~/.cache/onetrunk]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of the trunk on train texts (dev texts: fp32, as served); auto is bf16 where it is fast and exact enough.",
)
@click.option("--force", is_flag=True, help="Train again what is finished.")
@click.option("--skip-bad-rows", is_flag=True, help="Leave out rows that cannot be used, and say how many.")
@click.option("--results", type=click.Path(path_type=Path), metavar="FILE.md", help="Also write the table to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def train_head(
    tasks: tuple[str, ...],
    task_list: str | None,
    trunk: str | None,
    task_dir: Path,
    data: Path | None,
    heads: Path,
    cache: Path | None,
    device: Any,
    precision: Any,
    force: bool,
    skip_bad_rows: bool,
    results: Path | None,
    as_json: bool,
    **recipe_options: float | None,
) -> None:
    """Trains heads on the frozen trunk and writes their bundles.

    TASK is the name of a file in the task folder, or a path to a task file.
    """
    with errors_end_command():
        names = _task_names(tasks, task_list)
        # Imported here: --help and a mistyped option need no torch.
        from builder.model.trunk import load_trunk
        from builder.training import train
        from builder.training.report import check_report_path, write_report

        chosen = _load_tasks(names, task_dir)
        if results is not None:
            check_report_path(results)
        done: list[TrainResult] = []
        try:
            with _progress(len(chosen)) as (begin, progress):
                loaded = load_trunk(trunk)
                for task in chosen:
                    begin(task.name)
                    result = train(
                        task,
                        loaded,
                        recipe=_recipe(task, recipe_options),
                        heads=heads,
                        cache=cache,
                        data_root=data,
                        device=device,
                        precision=precision,
                        force=force,
                        skip_bad_rows=skip_bad_rows,
                        progress=progress,
                    )
                    done.append(result)
                    _tell(result)
        finally:
            # What is finished is finished, also where a later task fails.
            if done:
                _print_results(done, as_json)
        if results is not None:
            write_report(results, done, _command_line())


def _task_names(arguments: tuple[str, ...], task_list: str | None) -> list[str] | None:
    """Names of tasks, each once; None for all."""
    from builder.errors import UserError

    listed = [name.strip() for name in (task_list or "").split(",") if name.strip()]
    if listed == ["all"] and not arguments:
        return None
    names = list(dict.fromkeys([*arguments, *listed]))
    if not names or "all" in names:
        raise UserError("name the tasks to train, or give --tasks all")
    return names


def _load_tasks(names: list[str] | None, task_dir: Path) -> list[Task]:
    from builder.errors import UserError
    from builder.tasks import find_task, find_tasks, load_task

    files = find_tasks(task_dir) if names is None else [find_task(name, task_dir) for name in names]
    loaded = [load_task(file) for file in files]
    seen: dict[str, Path] = {}
    for task, file in zip(loaded, files, strict=True):
        if task.name in seen:
            raise UserError(f"{file}: its task {task.name} is also that of {seen[task.name]}")
        seen[task.name] = file
    return loaded


def _recipe(task: Task, options: dict[str, float | None]) -> Recipe:
    from pydantic import ValidationError

    from builder.errors import UserError
    from builder.tasks import Recipe

    given = {key: value for key, value in options.items() if value is not None}
    try:
        return Recipe.model_validate({**task.recipe.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]} {first['input']}: {first['msg'].lower()}") from error


@contextmanager
def _progress(tasks: int) -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Two bars on stderr: the tasks, and the step that is being done, with the time that it will still take.

    Gives the function to call when a task begins, and the one to call within it.
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
    # Into a file or a pipe go the lines about finished tasks alone.
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
                # Another step: its speed is not that of the one before.
                bars.reset(within, total=total, completed=done, visible=True)
            bars.update(within, description=what, completed=done)

        yield begin, show


def _tell(result: TrainResult) -> None:
    spec = result.spec
    score = f"{spec.metric} {100 * result.score:.1f}"
    if result.already_there:
        click.echo(f"{spec.task}: finished earlier, {score} (--force trains it again)", err=True)
    else:
        seconds = result.trunk_seconds + result.train_seconds
        size = f"{result.cache_bytes / 1e6:.0f} MB of states cached"
        click.echo(f"{spec.task}: {score} in {seconds:.0f} s, {size}; wrote {result.bundle}", err=True)
    for note in result.notes:
        click.echo(f"{spec.task}: note: {note}", err=True)


def _print_results(results: list[TrainResult], as_json: bool) -> None:
    from builder.training.report import COLUMNS, as_values, row_cells

    if as_json:
        click.echo(json.dumps([as_values(result) for result in results], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, no_wrap=True, justify="left" if column in ("task", "dev score") else "right")
    for result in results:
        table.add_row(*row_cells(result))
    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe has no width that a row must fit into.
        console.width = 200
    console.print(table)


def _command_line() -> str:
    import sys

    return shlex.join(["train-head", *sys.argv[1:]])
