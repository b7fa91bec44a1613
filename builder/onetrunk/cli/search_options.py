"""The options of ``train-head`` that have to do with a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onetrunk.cli.console import errors_end_command

Command = TypeVar("Command", bound=Callable[..., Any])

# As 0.97, not 97; a head may well keep more than all.
_SHARE = click.FloatRange(0, 2, min_open=True)


def _refuse_moved(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Name the command that an option has moved to."""
    if value is not None:
        from onetrunk.protocol.errors import UserError

        with errors_end_command():
            raise UserError(
                f"{option.opts[0]} is not an option of this command: give `python -m benchmarks.study {option.name} "
                f"--tasks {value}` in a checkout of the project"
            )


_OPTIONS = (
    click.option("--grid", hidden=True, expose_value=False, is_eager=True, callback=_refuse_moved),
    click.option("--ablation", hidden=True, expose_value=False, is_eager=True, callback=_refuse_moved),
    click.option("--search", is_flag=True, help="Search taps and layers of all named tasks, and write a plan."),
    click.option(
        "--plan", "plan_path", type=click.Path(path_type=Path), metavar="FILE.toml", help="Make the heads of a plan."
    ),
    click.option("--report", is_flag=True, help="Rebuild tables and plots in the study's folder; trains nothing."),
    click.option(
        "--tensorboard",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="FOLDER",
        help="With --report: also write the runs' curves for TensorBoard.",
    ),
    click.option(
        "--study",
        type=click.Path(path_type=Path, file_okay=False),
        help="The folder of a search: records, costs, plan, report. [default: study; with --plan, the plan's own]",
    ),
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trainings side by side."),
    click.option(
        "--backend",
        default="local",
        show_default=True,
        metavar="local|ray|ray://HOST:PORT",
        help="Where they run; Ray needs pip install -e '.[cluster]'.",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="How often full fine-tuning and the chosen heads of small tasks are trained.",
    ),
    click.option(
        "--floor",
        "floor_average",
        type=_SHARE,
        default=0.996,
        show_default=True,
        help="Share of full fine-tuning's score that the plan keeps on average.",
    ),
    click.option(
        "--task-floor", type=_SHARE, default=0.97, show_default=True, help="Share that every task keeps in the plan."
    ),
    click.option(
        "--most-share",
        type=_SHARE,
        help="Greatest cost of the plan, as a share of single-task models. [default: any]",
    ),
)


def search_options(command: Command) -> Command:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
