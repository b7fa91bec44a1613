"""The form of a server's address, checked before gRPC sees it."""

from __future__ import annotations

import ipaddress
import os
import re

_EXAMPLE = "give host and port of the gRPC endpoint, as in 127.0.0.1:8001"
# A name, an IPv4 address, or an IPv6 address in brackets.
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]")
_UNIX = "unix:"
# gRPC reads the rest of these as the escapes, the query and the fragment of a URI, or as further addresses.
_NO_PATH_CHARACTERS = frozenset("%?#,")
# What the kernel takes, without the zero at the end.
_LONGEST_UNIX_PATH = 107


def address_fault(url: str) -> str | None:
    """Return what is wrong with a gRPC address, and what is allowed; None if nothing is.

    An address is host and port, or ``unix:`` and the absolute path of a socket. (The path of a Triton that listens on
    ``--grpc-address=unix:/run/triton.sock`` ends with its port: ``unix:/run/triton.sock:8001``.)

    gRPC itself takes a missing port for 443 and a port above 65535 modulo 65536, and so reaches another server.
    """
    if (path := unix_path(url)) is not None:
        if not path.startswith("/") or path.startswith("//") or not path.isprintable():
            return "it is not the absolute path of a socket, as in unix:/run/triton.sock:8001"
        if found := sorted(_NO_PATH_CHARACTERS & set(path)):
            return f"gRPC cannot reach a socket with {found[0]!r} in its path"
        if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
            return f"its path has more than {_LONGEST_UNIX_PATH} bytes, the most that a socket can have"
        return None
    if "://" in url:
        return f"it names a protocol; {_EXAMPLE}"
    host, colon, port = url.rpartition(":")
    if not colon or not _HOST.fullmatch(host):
        return f"it is not a host and a port; {_EXAMPLE}"
    if not (port.isascii() and port.isdecimal()) or not 1 <= int(port[:6]) <= 65535:
        return f"{port!r} is not a port from 1 to 65535; {_EXAMPLE}"
    return None


def unix_path(url: str) -> str | None:
    """Return the path of an address that is a Unix socket, or None for host and port."""
    return url.removeprefix(_UNIX) if url.startswith(_UNIX) else None


def split_address(url: str) -> tuple[str, int]:
    """Return host, without brackets, and port of an address that `address_fault` accepts and that is no Unix socket."""
    host, _, port = url.rpartition(":")
    return host.strip("[]"), int(port)


def stays_on_this_machine(url: str) -> bool:
    """Return whether nothing that is sent to an address leaves this machine: a Unix socket, or the loopback.

    A name other than ``localhost`` may be anybody's, whatever it resolves to at the moment.
    """
    if unix_path(url) is not None:
        return True
    host, _ = split_address(url)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
