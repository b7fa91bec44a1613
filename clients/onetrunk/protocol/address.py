"""The form of a server's address, checked before gRPC sees it."""

from __future__ import annotations

import re

_EXAMPLE = "give host and port of the gRPC endpoint, as in 127.0.0.1:8001"
# A name, an IPv4 address, or an IPv6 address in brackets.
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]")


def address_fault(url: str) -> str | None:
    """Return what is wrong with a gRPC address, and what is allowed; None for host and port, or ``unix:`` and a path.

    gRPC itself takes a missing port for 443 and a port above 65535 modulo 65536, and so reaches another server.
    """
    if url.startswith("unix:/"):
        return None
    if "://" in url:
        return f"it names a protocol; {_EXAMPLE}"
    host, colon, port = url.rpartition(":")
    if not colon or not _HOST.fullmatch(host):
        return f"it is not a host and a port; {_EXAMPLE}"
    if not (port.isascii() and port.isdecimal()) or not 1 <= int(port[:6]) <= 65535:
        return f"{port!r} is not a port from 1 to 65535; {_EXAMPLE}"
    return None
