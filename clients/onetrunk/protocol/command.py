"""How the commands of builder, server and clients print, and how errors end them."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from onetrunk.protocol.errors import NotReady, OneTrunkError

if TYPE_CHECKING:
    from rich.table import Table

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream can print every character."""
    try:
        "\N{GRINNING FACE}".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def as_printed(text: str, stream: TextIO) -> str:
    """Return a text as a stream of a command prints it, so that a table can be laid out by its length.

    See `errors_end_command`: escapes stand for what the stream has no characters for.
    """
    encoding = stream.encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(text: str) -> str:
    """Return a text without what a terminal obeys: a message may quote a server, a store or a file of somebody else."""
    return _CONTROLS.sub("?", text)


# A pipe or a file has no width that a row must fit into.
_PIPE_WIDTH = 1_000_000


def print_on_stdout(table: Table) -> None:
    """Print a table. Values are wrapped or shortened in a terminal that has no room for them, and nowhere else."""
    # Imported here: many commands print no table.
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = _PIPE_WIDTH
    with console.capture() as printed:
        console.print(table)
    # Not by splitlines, which a value may contain more kinds of than rich ends lines by.
    click.echo("\n".join(line.rstrip() for line in printed.get().removesuffix("\n").split("\n")))


@contextmanager
def errors_end_command(prefix: str = "error", *, if_not_ready: str | None = None) -> Iterator[None]:
    """Print an error of the package as one line on stderr, and exit with its exit code.

    What the user's terminal or file has no character for, as in a label, is printed as an escape inside the block.

    Args:
        prefix: The text before the error's message.
        if_not_ready: A further line for the user if no server answers.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not is_unicode(stream):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except OneTrunkError as error:
        click.echo(printable(f"{prefix}: {error}"), err=True)
        if if_not_ready is not None and isinstance(error, NotReady):
            click.echo(if_not_ready, err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)
