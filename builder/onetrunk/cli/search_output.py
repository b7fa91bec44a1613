"""What a search shows: a live table of its jobs, the notes, and the plan that it came to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from onetrunk.protocol.command import print_on_stdout

if TYPE_CHECKING:
    from onetrunk.distill.jobs import Job, StatusBoard
    from onetrunk.distill.plan_file import PlanFile
    from onetrunk.progress import ProgressCallback
    from onetrunk.protocol.errors import OneTrunkError
    from onetrunk.training.experiment import ExperimentConfig

_SECONDS_BETWEEN_UPDATES = 1.0


def print_notes(runs: Path, tasks: Sequence[str]) -> None:
    """Print the notes of the searches on stderr."""
    from onetrunk.distill.trials import load_trials

    for search in load_trials(runs, ["search"]):
        for note in search.notes if search.task in tasks else ():
            click.echo(f"{search.task}: note: {note}", err=True)


def print_plan(plan: PlanFile, path: Path, as_json: bool) -> None:
    """Print a plan on stdout, and on stderr where it is and what comes next."""
    if as_json:
        click.echo(json.dumps(plan.model_dump(mode="json"), indent=2))
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("task", "tap", "layers", "score", "full fine-tuning", "kept"):
            table.add_column(column, justify="left" if column == "task" else "right")
        for option in plan.options:
            table.add_row(
                option.task,
                option.where.removeprefix("tap "),
                str(option.layers),
                f"{100 * option.score:.1f}",
                f"{100 * option.full:.1f}",
                f"{option.retention:.1%}",
            )
        print_on_stdout(table)
        kept, cost = plan.kept, plan.cost
        click.echo(f"kept on average {kept.average:.1%}; cost {cost.share:.1%} of {len(plan.tasks)} single-task models")
    if plan.kept.note:
        click.echo(f"note: {plan.kept.note}", err=True)
    click.echo(f"wrote {path}; next: search-heads make {path}", err=True)


@contextmanager
def job_table(
    config: ExperimentConfig, tasks: Sequence[str]
) -> Iterator[tuple[Callable[[Job | OneTrunkError], None], ProgressCallback]]:
    """Show a live table of the jobs on a terminal; elsewhere print a line for each job that ends.

    Yields the function to call with each job that ends, and the one to call with the progress of this process.
    """
    from onetrunk.distill.jobs import StatusBoard
    from onetrunk.files import cache_root
    from onetrunk.progress import progress_counts, silent, split_unit

    console = Console(stderr=True)

    def on_done(result: Job | OneTrunkError) -> None:
        prefix = "failed: " if isinstance(result, Exception) else "done: "
        console.print(f"{prefix}{result}", highlight=False, markup=False)

    if not console.is_terminal:
        yield on_done, silent
        return
    board, ended, caption = StatusBoard(cache_root(config.cache) / "status"), threading.Event(), ""

    def progress(what: str, done: int, total: int) -> None:
        nonlocal caption
        what, unit = split_unit(what)
        caption = f"{what}: {progress_counts(done, total, unit)}" if done < total else ""

    with Live(_table(board, config.runs, tasks), console=console, refresh_per_second=2, transient=True) as live:

        def follow() -> None:
            while not ended.wait(_SECONDS_BETWEEN_UPDATES):
                live.update(_table(board, config.runs, tasks, caption))

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield on_done, progress
        finally:
            ended.set()
            follower.join()


def _table(board: StatusBoard, runs: Path, tasks: Sequence[str], caption: str = "") -> Table:
    """Return a row per task: its step, how long that still takes, the best scores so far and their cost."""
    from onetrunk.distill.trials import load_trials
    from onetrunk.progress import split_unit

    working = {status.job.partition(":")[0]: status for status in board.read()}
    searches = {study.task: study for study in load_trials(runs, ["search"])}
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption or None)
    for column in ("task", "doing", "done", "left", "runs", "best teacher", "best student", "CPU s"):
        table.add_column(column, justify="left" if column in ("task", "doing") else "right", no_wrap=True)
    for task in tasks:
        status, search = working.get(task), searches.get(task)
        trials = search.trials if search else ()
        cells = [task, "", "", ""]
        if status is not None:
            left = status.left_seconds
            share = f"{status.done / max(status.total, 1):.0%}"
            cells = [task, split_unit(status.step)[0], share, "" if left is None else f"{left:.0f} s"]
        cells.append(str(len(trials) or ""))
        for stage in ("teacher", "student"):
            of_stage = [trial for trial in trials if trial.stage == stage]
            best = max(of_stage, key=lambda trial: trial.score, default=None)
            where = "" if best is None else f" ({best.spec.recipe.tap}, {best.spec.recipe.layers})"
            cells.append("" if best is None else f"{100 * best.score:.1f}{where}")
        cells.append(f"{search.cpu_seconds:.0f}" if search else "")
        table.add_row(*cells)
    return table
