"""API keys: which clients may ask. Unlike the admin key, they change nothing on a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onetrunk.protocol.admin_key import MAX_KEY_BYTES, key_fault, read_secret_file
from onetrunk.protocol.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

API_KEY_FILE_VARIABLE = "ONETRUNK_API_KEY_FILE"
MAX_KEYS = 1000

AUTHORIZATION = "authorization"
"""The header of HTTP and of gRPC that carries a key, as ``Bearer KEY``."""

KEY_WANTED = "this server asks for a key"
"""What a front's refusal begins with. Then comes the header, for those who set headers themselves."""


def without_header(refusal: str) -> str:
    """Return a front's refusal without its advice. One of somebody else's, such as a proxy's, stays as it is."""
    return KEY_WANTED if refusal.startswith(KEY_WANTED) else refusal


def api_key_file_option(meaning: str) -> Callable[[F], F]:
    """Return the option of every command that uses keys.

    Args:
        meaning: What the file is for, for the help.
    """
    return click.option(
        "--api-key-file", metavar="FILE", type=click.Path(path_type=Path), envvar=API_KEY_FILE_VARIABLE, help=meaning
    )


def read_api_keys(file: Path) -> tuple[str, ...]:
    """Return the keys in a file, one a line. Empty lines, and lines that begin with ``#``, are skipped.

    Args:
        file: The file, which nobody else may read.

    Raises:
        UserError: It cannot be read, others may read it, it has no key or too many, or one cannot be a header.
    """
    source = f"--api-key-file {file}"
    content = read_secret_file(file, source, MAX_KEYS * (MAX_KEY_BYTES + 1))
    lines = content.decode("latin-1").splitlines()
    keys = []
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            keys.append(check_api_key(line, f"{source}: line {number}"))
    if not 1 <= len(keys) <= MAX_KEYS:
        raise UserError(f"{source}: it has {len(keys)} keys: give 1 to {MAX_KEYS}, one a line")
    return tuple(keys)


def check_api_key(key: str, source: str) -> str:
    """Return a key that can be sent as a header.

    Args:
        key: The key.
        source: Where it comes from, for the message.

    Raises:
        UserError: It cannot be a header. The message does not repeat it.
    """
    fault = "has a blank" if " " in key else key_fault(key)
    if fault is not None:
        raise UserError(
            f"{source}: the API key {fault}: give 1 to {MAX_KEY_BYTES} printable ASCII characters without blanks, as "
            "from: head -c 24 /dev/urandom | base64"
        )
    return key
