"""Options and messages that the commands of this package share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from onetrunk.protocol.address import client_addresses
from onetrunk.protocol.api_key import KEY_WANTED, read_api_keys
from onetrunk.protocol.errors import KeyRefused, TlsError, UserError
from onetrunk.protocol.tls import Tls, tls_fault

START_A_SERVER = "start a server with: serve-repo"
"""What a command says if no server answers."""


def check_tls(url: str, tls: Tls | None) -> None:
    """Make a handshake before gRPC does, which would log a failed one beside the command's one line about it.

    Raises:
        TlsError: Client and server do not agree.
    """
    if tls is None:
        return
    try:
        addresses = client_addresses(url)
    except ValueError:  # its client says what is wrong
        return
    faults = [tls_fault(address, tls) for address in addresses]
    if all(faults):  # one server that agrees is enough
        raise TlsError(faults[0] or "")


def first_key(file: Path | None) -> str | None:
    """Return the first key of a file, if one was given. See `read_api_keys` for errors."""
    return read_api_keys(file)[0] if file is not None else None


@contextmanager
def key_errors(file: Path | None) -> Iterator[None]:
    """Say of a key that is missing or wrong what a user of the command can do about it.

    Args:
        file: The file of keys that was given.

    Raises:
        UserError: The server refused the key.
    """
    try:
        yield
    except KeyRefused:
        wrong = f"the key of --api-key-file {file} is not one of the server's: put one of them into its first line"
        missing = f"{KEY_WANTED}: give --api-key-file FILE"
        raise UserError(missing if file is None else wrong) from None


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Parse an option of comma-separated names.

    Raises:
        click.BadParameter: There is no name in it.
    """
    if value is None:
        return None
    found = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not found:
        raise click.BadParameter(f"no name in {value!r}; give names separated by commas", ctx, param)
    return found


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Parse an option of integers above 0: separated by commas, or as ``first:last[:step]``.

    Raises:
        click.BadParameter: It is something else.
    """
    if value is None:
        return None
    try:
        if ":" in value:
            first, last, *steps = (int(part) for part in value.split(":"))
            (step,) = steps or (1,)
            found = set(range(first, last + 1, step))
        else:
            found = {int(part) for part in value.split(",")}
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: give numbers as in 1,2,4 or a range as in 1:8 or 2:16:2", ctx, param
        ) from None
    if not found or min(found) < 1:
        raise click.BadParameter(f"{value!r}: give integers from 1 up, in ascending order", ctx, param)
    return tuple(sorted(found))
