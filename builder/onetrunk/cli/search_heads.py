"""What ``train-head`` does with --search, --plan and --report."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from onetrunk.cli.console import progress_line

if TYPE_CHECKING:
    from onetrunk.distill.cost_table import CostTable
    from onetrunk.distill.jobs import StatusBoard, Unit
    from onetrunk.distill.pipeline import Study
    from onetrunk.distill.plan_file import PlanFile
    from onetrunk.distill.settings import SearchSettings
    from onetrunk.protocol.errors import OneTrunkError
    from onetrunk.training.experiment import ExperimentConfig

_SECONDS_BETWEEN = 1.0
# Padded lengths at which parts are measured, and the longest text that there is.
_COST_TOKENS = (32, 64)


@dataclass(frozen=True)
class SearchOptions:
    """What the command line says about a search.

    Attributes:
        study: the folder of run records, costs and plan.
        jobs: pieces of work at a time.
        backend: see ``onetrunk.distill.jobs.run_jobs``.
        seeds: how often baselines and chosen heads of small tasks are trained.
        grid: tasks that get a full grid.
        ablation: tasks that get ablations.
        floor_task: least share of full fine-tuning's score that every task keeps.
        floor_average: the same for the mean.
        most_share: greatest cost, as a share of single-task models.
        as_json: print the plan as JSON.
    """

    study: Path
    jobs: int
    backend: str
    seeds: int
    grid: tuple[str, ...]
    ablation: tuple[str, ...]
    floor_task: float
    floor_average: float
    most_share: float | None
    as_json: bool


def search_heads(
    tasks: Sequence[str], experiment: ExperimentConfig, settings: SearchSettings, options: SearchOptions
) -> None:
    """Trains baselines, searches depths, distils, measures costs, and writes a plan.

    Raises:
        UserError: an option or a task is wrong.
        OneTrunkError: a piece of work failed; what others came to is kept.
    """
    from onetrunk.distill.jobs import check_backend
    from onetrunk.distill.pipeline import Study

    check_backend(options.backend)
    _check_named(tasks, (*options.grid, *options.ablation))
    study = Study(experiment, settings, options.jobs, options.backend)
    plan_path = options.study / "plan.toml"
    with _table(study.experiment.cache_root, experiment.runs, tasks) as told:
        _run(study, study.trunk(tasks), told)
        _run(study, study.baselines(tasks), told)
        _run(study, study.searches(tasks), told)
        study.save_baselines(tasks)
        table = _costs(study, options.study / "costs.json")
        plan = _plan(plan_path, tasks, table, experiment, options)
        _share(study, plan, options.study / "share.json")
        _run(study, study.seeds(tasks, plan), told)
        study.save_seeds(tasks, plan_path)
        _run(study, study.proofs(options.grid, options.ablation), told)
    _tell_notes(experiment.runs, tasks)
    _tell_plan(plan, plan_path, options.as_json)


def _check_named(tasks: Sequence[str], named: Sequence[str]) -> None:
    from onetrunk.protocol.errors import UserError

    for name in named:
        if name not in tasks:
            raise UserError(f"--grid or --ablation names {name}, which is not searched; allowed are {', '.join(tasks)}")


def _run(study: Study, units: Sequence[Unit], told: Callable[[Unit | OneTrunkError], None]) -> None:
    errors = study.run(units, told)
    if errors:
        raise errors[0]


def _costs(study: Study, path: Path) -> CostTable:
    """The measured costs: those on disk, where they are of this trunk and machine, or measured now."""
    from onetrunk.distill.cost_table import CostTable
    from onetrunk.distill.costs import measure_costs
    from onetrunk.machine import processor_name

    trunk = study.experiment.trunk
    if path.is_file():
        table = CostTable.read(path)
        measured = {bucket.tokens for bucket in table.buckets}
        if (table.trunk, table.machine, measured) == (trunk.identity, processor_name(), set(_lengths(study))):
            return table
    with progress_line() as progress:
        table = measure_costs(trunk, tokens=_lengths(study), progress=progress)
    table.write(path)
    return table


def _share(study: Study, plan: PlanFile, path: Path) -> None:
    """What the plan's models cost beside single-task models, measured in one run, where that is not on disk."""
    from benchmarks.study.share import ShareReport, measure_share
    from onetrunk.machine import processor_name

    heads = tuple((option.tap, option.layers, option.query) for option in plan.options)
    trunk, lengths = study.experiment.trunk, _lengths(study)
    if path.is_file():
        there = ShareReport.read(path)
        measured = {row.tokens for row in there.rows}
        if (there.heads, there.trunk, there.machine, measured) == (
            heads,
            trunk.identity,
            processor_name(),
            set(lengths),
        ):
            return
    with progress_line() as progress:
        measure_share(heads, trunk, tokens=lengths, progress=progress).write(path)


def _lengths(study: Study) -> tuple[int, ...]:
    """The padded lengths to measure at: some short ones, and the longest text that there is."""
    longest = study.config.max_length
    return (*(length for length in _COST_TOKENS if length < longest), longest)


def _plan(
    path: Path, tasks: Sequence[str], table: CostTable, experiment: ExperimentConfig, options: SearchOptions
) -> PlanFile:
    from onetrunk.distill.pipeline import make_plan, servable_options

    return make_plan(
        path,
        servable_options(experiment.runs, tasks),
        table,
        floor_task=options.floor_task,
        floor_average=options.floor_average,
        most_share=options.most_share,
    )


def _tell_notes(runs: Path, tasks: Sequence[str]) -> None:
    from onetrunk.distill.trials import load_trials

    for search in load_trials(runs, ["search"]):
        for note in search.notes if search.task in tasks else ():
            click.echo(f"{search.task}: note: {note}", err=True)


def _tell_plan(plan: PlanFile, path: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(plan.model_dump(mode="json"), indent=2))
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("task", "tap", "layers", "score", "full fine-tuning", "kept"):
            table.add_column(column, justify="left" if column == "task" else "right")
        for option in plan.options:
            table.add_row(
                option.task,
                str(option.tap),
                str(option.layers),
                f"{100 * option.score:.1f}",
                f"{100 * option.full:.1f}",
                f"{option.retention:.1%}",
            )
        Console(highlight=False).print(table)
        kept, cost = plan.kept, plan.cost
        click.echo(f"kept on average {kept.average:.1%}; cost {cost.share:.1%} of {len(plan.tasks)} single-task models")
    if plan.kept.note:
        click.echo(f"note: {plan.kept.note}", err=True)
    click.echo(f"wrote {path}; next: train-head --plan {path}", err=True)


@contextmanager
def _table(root: Path, runs: Path, tasks: Sequence[str]) -> Iterator[Callable[[Unit | OneTrunkError], None]]:
    """A live table on a terminal; elsewhere a line for each piece of work that ends."""
    from onetrunk.distill.jobs import StatusBoard

    console = Console(stderr=True)

    def tell(result: Unit | OneTrunkError) -> None:
        prefix = "failed: " if isinstance(result, Exception) else "done: "
        console.print(f"{prefix}{result}", highlight=False, markup=False)

    if not console.is_terminal:
        yield tell
        return
    board, ended = StatusBoard(root / "status"), threading.Event()
    with Live(_rows(board, runs, tasks), console=console, refresh_per_second=2, transient=True) as live:

        def follow() -> None:
            while not ended.wait(_SECONDS_BETWEEN):
                live.update(_rows(board, runs, tasks))

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield tell
        finally:
            ended.set()
            follower.join()


def _rows(board: StatusBoard, runs: Path, tasks: Sequence[str]) -> Table:
    """A row a task: what is being done, how long that step still takes, the best scores so far and their cost."""
    from onetrunk.distill.trials import load_trials

    working = {status.unit.partition(":")[0]: status for status in board.read()}
    searches = {study.task: study for study in load_trials(runs, ["search"])}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "doing", "done", "left", "runs", "best teacher", "best student", "CPU s"):
        table.add_column(column, justify="left" if column in ("task", "doing") else "right", no_wrap=True)
    for task in tasks:
        status, search = working.get(task), searches.get(task)
        trials = search.trials if search else ()
        cells = [task, "", "", ""]
        if status is not None:
            left = status.left_seconds
            share = f"{status.done / max(status.total, 1):.0%}"
            cells = [task, status.what, share, "" if left is None else f"{left:.0f} s"]
        best = {
            stage: max((trial for trial in trials if trial.stage == stage), key=lambda trial: trial.score, default=None)
            for stage in ("teacher", "student")
        }
        cells += [str(len(trials) or "")]
        for trial in best.values():
            where = "" if trial is None else f" ({trial.spec.recipe.tap}, {trial.spec.recipe.layers})"
            cells.append("" if trial is None else f"{100 * trial.score:.1f}{where}")
        cells.append(f"{search.cpu_seconds:.0f}" if search else "")
        table.add_row(*cells)
    return table
