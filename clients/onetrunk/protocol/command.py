"""How errors end the commands of builder, server and clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from onetrunk.protocol.errors import NotReady, OneTrunkError


@contextmanager
def errors_end_command(prefix: str = "error", *, if_not_ready: str | None = None) -> Iterator[None]:
    """Print an error of the package as one line on stderr, and exit with its exit code.

    Args:
        prefix: The text before the error's message.
        if_not_ready: A further line for the user if no server answers.
    """
    try:
        yield
    except OneTrunkError as error:
        click.echo(f"{prefix}: {error}", err=True)
        if if_not_ready is not None and isinstance(error, NotReady):
            click.echo(if_not_ready, err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)
