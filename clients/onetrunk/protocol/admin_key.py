"""The admin key: where it comes from, who may read it, and which keys a header can carry.

Whoever has the key may load models, and a model may run code. So no message names the key or a part of it.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import click

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import ADMIN_KEY_FILE_VARIABLE, ADMIN_KEY_VARIABLE

MAX_KEY_BYTES = 4096
"""The longest key. gRPC and most proxies refuse all headers of a request together above 8 KiB."""

_NO_HEADER_CHARACTER = re.compile(r"[^\x20-\x7e]")

admin_key_file_option = click.option(
    "--admin-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Read the admin key from here, not from {ADMIN_KEY_VARIABLE}; mode 0600.",
)
"""The option of every command that uses the key: its value is what `read_admin_key` takes."""


class AdminKey(str):
    """A key that knows where it was read, for the message to whoever finds that it is wrong."""

    source: str

    def __new__(cls, key: str, source: str) -> AdminKey:
        """Return a key with its source, such as a file's name."""
        made = super().__new__(cls, key)
        made.source = source
        return made

    def __reduce__(self) -> tuple[type[AdminKey], tuple[str, str]]:
        """Return what a copy is made of."""
        return AdminKey, (str(self), self.source)

    def __repr__(self) -> str:
        """Return a text without the key, for logs and tracebacks."""
        return f"AdminKey(source={self.source!r})"


def read_admin_key(file: Path | None = None) -> AdminKey | None:
    """Return the admin key, or None if there is none.

    Args:
        file: The file that holds the key, with or without a newline at its end. None goes by the environment:
            ``ONETRUNK_ADMIN_KEY_FILE`` names the file, or ``ONETRUNK_ADMIN_KEY`` is the key. A variable that is
            empty counts as not set.

    Raises:
        UserError: Both variables are set, the file cannot be read, others may read it, or what it holds cannot be a
            header.
    """
    variable, named = os.environ.get(ADMIN_KEY_VARIABLE), os.environ.get(ADMIN_KEY_FILE_VARIABLE)
    if file is not None:
        return _read_file(file, f"--admin-key-file {file}")
    if variable and named:
        raise UserError(f"{ADMIN_KEY_VARIABLE} and {ADMIN_KEY_FILE_VARIABLE} are both set: unset one of them")
    if named:
        return _read_file(Path(named), f"{ADMIN_KEY_FILE_VARIABLE}={named}")
    if not variable:
        return None
    return AdminKey(check_admin_key(variable.removesuffix("\n"), ADMIN_KEY_VARIABLE), ADMIN_KEY_VARIABLE)


def check_admin_key(key: str, source: str) -> str:
    """Return a key that can be sent as a header.

    Args:
        key: The key.
        source: Where it comes from, for the message.

    Raises:
        UserError: It cannot be a header. The message does not repeat it.
    """
    if fault := key_fault(key):
        raise UserError(
            f"{source}: the admin key {fault}; it is a header of gRPC and HTTP: give 1 to {MAX_KEY_BYTES} printable "
            "ASCII characters without blanks around them, as from: head -c 24 /dev/urandom | base64"
        )
    return key


def key_fault(key: str) -> str | None:
    """Return why a key cannot be a header, or None."""
    if not key:
        return "is empty"
    if len(key) > MAX_KEY_BYTES:
        return f"is longer than {MAX_KEY_BYTES} characters"
    if found := _NO_HEADER_CHARACTER.search(key):
        what = "a control character" if found[0] < "\x80" else "a character beyond ASCII"
        return f"has {what} at position {found.start() + 1}"
    if key != key.strip(" "):
        return f"{'begins' if key.startswith(' ') else 'ends'} with a blank"
    return None


def _read_file(file: Path, source: str) -> AdminKey:
    content = read_secret_file(file, source, MAX_KEY_BYTES + 2)  # for the newline, and to tell that it is too long
    # Latin-1 takes every byte to a character; those beyond ASCII are refused with all the others.
    key = content.removesuffix(b"\n").decode("latin-1")
    if "\n" in key and len(key) <= MAX_KEY_BYTES:
        raise UserError(f"{source}: it has {key.count(chr(10)) + 1} lines: give one key")
    return AdminKey(check_admin_key(key, source), str(file))


def read_secret_file(file: Path, source: str, most_bytes: int) -> bytes:
    """Return what a file holds that only this user, or root, can read and change.

    Args:
        file: The file.
        source: Where its name comes from, for the message.
        most_bytes: The most that is read.

    Raises:
        UserError: It cannot be read, is not a regular file, or others may read it.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer. A link is followed: secrets are mounted as links.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    try:
        # Of the file that was opened: the name may point to another one by now.
        if fault := _exposure(os.fstat(descriptor)):
            raise UserError(f"{source}: {fault}")
        return os.read(descriptor, most_bytes)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _exposure(status: os.stat_result) -> str | None:
    """Return why an opened file is no place for a key, or None."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to the user with id {status.st_uid}, who can read and change it; it must be yours or root's"
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        return f"its mode is {mode:04o}, and so others may read or change it: chmod 600 it, and change the key"
    return None
