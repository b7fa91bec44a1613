"""``train-head``: labelled text in, bundles out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from onetrunk.cli.console import errors_end_command
from onetrunk.cli.data_options import data_option, task_dir_option
from onetrunk.cli.search_options import search_options

if TYPE_CHECKING:
    from onetrunk.progress import ProgressCallback
    from onetrunk.tasks import Recipe, Task
    from onetrunk.training import TrainResult
    from onetrunk.training.workbench import BenchSettings

_EPILOG = """\b
Examples:
  train-head sst2                              by the recipe in tasks/sst2.toml
  train-head --tasks all                       every task in tasks/
  train-head cola --tap 2 --layers 3 --lr 1e-4 the same data, another head
  train-head my/spam.toml                      a task of your own
  train-head --tasks all --search --jobs 2     look for the best taps and layers
  train-head --plan study/plan.toml            make the heads that it chose
  train-head --report                          its tables and plots

\b
A task of your own is a CSV or TSV with a header, or JSON lines, also as .gz, and a
file like spam.toml:
  labels = ["ham", "spam"]
  train = "train.csv"
  dev = "dev.csv"
Columns are sentence, sentence2 (for form = "pair") and label; text_field = "..."
names another. kind = "multilabel", "regression" (with range = [0, 5]) or "tagging"
(labels are types of spans; the data have words and tags) asks for something else than
one label: docs/tasks.md has an example of each.

\b
The trunk runs once per text; its states are kept under --cache. A run that was
killed goes on. Next: build-repo --tasks all."""


# What an option is for, where that is not everything: one head's training, a search, a plan, a report.
_STEPS = {
    **dict.fromkeys(("tap", "layers", "query", "epochs", "learning_rate", "batch_size", "seed", "force"), ("",)),
    **dict.fromkeys(("jobs", "backend", "seeds", "grid", "ablation"), ("--search",)),
    **dict.fromkeys(("floor_average", "task_floor", "most_share"), ("--search",)),
    **dict.fromkeys(("heads", "results"), ("", "--plan")),
    **dict.fromkeys(("trunk", "task_dir", "data", "cache", "device", "precision"), ("", "--search", "--plan")),
    **dict.fromkeys(("max_length", "skip_bad_rows", "as_json"), ("", "--search", "--plan")),
    "study": ("--search", "--plan", "--report"),
    "tensorboard": ("--report",),
}


@click.command(epilog=_EPILOG)
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@click.option("--tasks", "task_list", metavar="all|A,B", help="Tasks: all of them, or names with commas.")
@click.option("--tap", type=click.IntRange(0), help="Trunk layers below the head. [default: the task's recipe]")
@click.option("--layers", type=click.IntRange(1), help="The head's own layers. [default: the task's recipe]")
@click.option(
    "--query",
    type=click.Choice(["cls", "mean", "learned"]),
    help="What the head's last layer is computed for; not for tagging. [default: the task's recipe]",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the train data. [default: the task's recipe]")
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate. [default: the task's recipe]")
@click.option("--batch-size", type=click.IntRange(1), help="Texts a step. [default: the task's recipe]")
@click.option("--seed", type=click.IntRange(0), help="Same seed, same weights. [default: the task's recipe]")
@click.option("--max-length", type=click.IntRange(3), help="Longest text in tokens. [default: the task's recipe]")
@click.option("--trunk", metavar="FOLDER|HUB-ID", help="The trunk. [default: all-MiniLM-L6-v2, from its package]")
@task_dir_option("The folder of task files.")
@data_option
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
@search_options
@click.option("--results", type=click.Path(path_type=Path), metavar="FILE.md", help="Also write the table to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def train_head(
    tasks: tuple[str, ...],
    task_list: str | None,
    task_dir: Path,
    trunk: str | None,
    search: bool,
    plan_path: Path | None,
    report: bool,
    **options: Any,
) -> None:
    """Trains heads on the frozen trunk and writes their bundles.

    TASK is the name of a file in the task folder, or a path to a task file.

    With --search, the depth and the length of each head are searched for: full fine-tuning as the reference, probes of
    every tap, teachers on the best of them, students distilled from these, and a plan that takes of all tasks' heads
    those that keep enough at the least measured cost.
    """
    with errors_end_command():
        _refuse_mixed(search, plan_path, report)
        options["study"] = options["study"] or (plan_path.parent if plan_path else Path("study"))
        if report:
            _report(options)
            return
        names = _planned_names(plan_path, tasks, task_list) if plan_path else _task_names(tasks, task_list)
        chosen = _load_tasks(names, task_dir)
        if search:
            _search(chosen, trunk, options)
        else:
            _train(chosen, trunk, plan_path, options)


def _refuse_mixed(search: bool, plan_path: Path | None, report: bool) -> None:
    """Refuses options that have no effect together: what a user typed is meant to do something."""
    from onetrunk.protocol.errors import UserError

    given = [name for name, on in (("--search", search), ("--plan", plan_path is not None), ("--report", report)) if on]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are steps of their own: give one of them at a time")
    step = given[0] if given else ""
    context = click.get_current_context()
    for option in context.command.params:
        steps = _STEPS.get(option.name or "")
        typed = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if typed and steps is not None and step not in steps:
            there = " or ".join(name or "the training of a head" for name in steps)
            here = f"with {step}" if step else "here"
            raise UserError(f"{option.opts[-1]} has no effect {here}: it is for {there}; leave it out")


def _train(chosen: list[Task], trunk: str | None, plan_path: Path | None, options: dict[str, Any]) -> None:
    # Imported here: --help and a mistyped option need no torch.
    from onetrunk.nn.trunk import load_trunk
    from onetrunk.training import train
    from onetrunk.training.report import check_report_path, write_report

    results = options["results"]
    if results is not None:
        check_report_path(results)
    done: list[TrainResult] = []
    try:
        with _progress(len(chosen)) as (begin, progress):
            if plan_path is not None:
                make = _plan_maker(plan_path, chosen, trunk, options)
            else:
                loaded = load_trunk(trunk)

                def make(task: Task, progress: ProgressCallback) -> TrainResult:
                    return train(
                        task,
                        loaded,
                        recipe=_recipe(task, options),
                        heads=options["heads"],
                        cache=options["cache"],
                        data_root=options["data"],
                        device=options["device"],
                        precision=options["precision"],
                        force=options["force"],
                        skip_bad_rows=options["skip_bad_rows"],
                        progress=progress,
                    )

            for task in chosen:
                begin(task.name)
                done.append(make(task, progress))
                _tell(done[-1])
    finally:
        # What is finished is finished, also where a later task fails.
        if done:
            _print_results(done, options["as_json"])
    if results is not None:
        write_report(results, done, _command_line())


def _plan_maker(
    plan_path: Path, chosen: list[Task], trunk: str | None, options: dict[str, Any]
) -> Callable[[Task, ProgressCallback], TrainResult]:
    from onetrunk.distill.bundles import carry_out, planned_length
    from onetrunk.distill.plan_file import read_plan
    from onetrunk.training.workbench import open_workbench

    plan = read_plan(plan_path)
    given = options["max_length"] or planned_length(plan, options["study"] / "runs")
    # The tasks of the plan that are not made now still lend their texts.
    bench = open_workbench(_bench_settings(chosen, trunk, {**options, "max_length": given}))
    plan.check_trunk(bench.trunk)
    return lambda task, progress: carry_out(task.name, plan, bench, options["heads"], progress)


def _planned_names(plan_path: Path, arguments: tuple[str, ...], task_list: str | None) -> list[str]:
    """The tasks of a plan; a plan is carried out whole, since students read other tasks' texts."""
    from onetrunk.distill.plan_file import read_plan
    from onetrunk.protocol.errors import UserError

    if arguments or task_list not in (None, "all"):
        raise UserError("--plan makes all heads of its plan; leave the names of tasks out")
    return list(read_plan(plan_path).tasks)


def _search(chosen: list[Task], trunk: str | None, options: dict[str, Any]) -> None:
    from onetrunk.cli.search_heads import SearchOptions, search_heads
    from onetrunk.distill.settings import SearchSettings

    def named(value: str | None) -> tuple[str, ...]:
        return tuple(name.strip() for name in (value or "").split(",") if name.strip())

    search_heads(
        [task.name for task in chosen],
        _bench_settings(chosen, trunk, options),
        SearchSettings(seeds=options["seeds"]),
        SearchOptions(
            study=options["study"],
            jobs=options["jobs"],
            backend=options["backend"],
            seeds=options["seeds"],
            grid=named(options["grid"]),
            ablation=named(options["ablation"]),
            floor_task=options["task_floor"],
            floor_average=options["floor_average"],
            most_share=options["most_share"],
            as_json=options["as_json"],
        ),
    )


def _bench_settings(chosen: list[Task], trunk: str | None, options: dict[str, Any]) -> BenchSettings:
    from onetrunk.distill.jobs import threads_for
    from onetrunk.training.workbench import BenchSettings

    return BenchSettings(
        tasks=tuple(chosen),
        trunk=trunk,
        cache=options["cache"],
        runs=options["study"] / "runs",
        data_root=options["data"],
        device=options["device"],
        precision=options["precision"],
        max_length=options["max_length"] or 128,
        skip_bad_rows=options["skip_bad_rows"],
        threads=threads_for(options["jobs"], options["backend"]),
    )


def _report(options: dict[str, Any]) -> None:
    from benchmarks.study import write_quality_report

    for path in write_quality_report(options["study"], tensorboard=options["tensorboard"]):
        click.echo(f"wrote {path}", err=True)


def _task_names(arguments: tuple[str, ...], task_list: str | None) -> list[str] | None:
    """Names of tasks, each once; None for all."""
    from onetrunk.protocol.errors import UserError

    listed = [name.strip() for name in (task_list or "").split(",") if name.strip()]
    if listed == ["all"] and not arguments:
        return None
    names = list(dict.fromkeys([*arguments, *listed]))
    if not names or "all" in names:
        raise UserError("name the tasks to train, or give --tasks all")
    return names


def _load_tasks(names: list[str] | None, task_dir: Path) -> list[Task]:
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks import find_task, find_tasks, load_task

    files = find_tasks(task_dir) if names is None else [find_task(name, task_dir) for name in names]
    loaded = [load_task(file) for file in files]
    seen: dict[str, Path] = {}
    for task, file in zip(loaded, files, strict=True):
        if task.name in seen:
            raise UserError(f"{file}: its task {task.name} is also that of {seen[task.name]}")
        seen[task.name] = file
    return loaded


def _recipe(task: Task, options: dict[str, float | str | None]) -> Recipe:
    from pydantic import ValidationError

    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks import Recipe

    given = {key: value for key in Recipe.model_fields if (value := options.get(key)) is not None}
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
    from onetrunk.training.report import COLUMNS, as_values, row_cells

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
