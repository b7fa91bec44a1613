"""What all commands of the builder share: how an error ends them, and how progress is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from onetrunk.protocol.errors import OneTrunkError


@contextmanager
def errors_end_command() -> Iterator[None]:
    """Turns the builder's errors into one line on stderr and the exit code that they carry."""
    try:
        yield
    except OneTrunkError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)


def typed_options() -> set[str]:
    """The names of the parameters that the user gave the command that runs, also where they are as by default."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


@contextmanager
def progress_line() -> Iterator[Callable[[str, int, int], None]]:
    """Shows on stderr what is being done and how far it is; gives the function to call with what, done and total."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=1)

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        yield show
