"""What all commands of the builder share: which options were typed, and how progress is shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from onetrunk.progress import progress_counts, split_unit
from onetrunk.protocol.command import as_printed, print_on_stdout
from onetrunk.protocol.errors import counted

if TYPE_CHECKING:
    from onetrunk.repository.working_copy import WorkingCopy


def typed_options() -> set[str]:
    """Return the parameters that the user gave to the running command, including those that equal their default."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


# Where no line can be drawn again and again, as in a log, one is written so often.
PLAIN_EVERY_S = 5.0


@contextmanager
def progress_line() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on stderr; yield the ``ProgressCallback`` that updates it."""
    shown_at = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    # Where nothing is drawn, rich would still end its drawing with an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=1, counts="")

        def show(what: str, done: int, total: int) -> None:
            nonlocal shown_at
            what, unit = split_unit(what)
            counts = progress_counts(done, total, unit)
            progress.update(bar, description=what, completed=done, total=total, counts=counts)
            if not console.is_terminal and time.monotonic() - shown_at >= PLAIN_EVERY_S:
                console.print(f"{what}: {counts}", highlight=False, markup=False, soft_wrap=True)
                shown_at = time.monotonic()

        yield show


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, texts: Sequence[str] = ()
) -> None:
    """Print a table on stdout.

    Args:
        columns: The names of its columns.
        rows: The cells of each row.
        title: A line above it.
        texts: The columns that have texts, which begin on the left; numbers end on the right.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=title is None, justify="left" if column in texts else "right")
    for row in rows:
        table.add_row(*(escape(as_printed(cell, sys.stdout)) for cell in row))
    print_on_stdout(table)


def print_published(copy: WorkingCopy) -> None:
    """Say what was published into a store, if there is one."""
    published = copy.published
    if published is not None:
        sent = f"sent {counted(len(published.uploaded), 'file', 'files')}, {published.bytes_sent / 1e6:,.1f} MB"
        click.echo(f"{copy.store}: release {published.release[:12]} is current; {sent}")
