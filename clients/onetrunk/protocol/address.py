"""The form of a server's address, checked before gRPC sees it."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence

_EXAMPLE = "give host and port of the gRPC endpoint, as in 127.0.0.1:8001"
# A name, an IPv4 address, or an IPv6 address in brackets.
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]")
_UNIX = "unix:"
_DNS = "dns:///"
# More than that is a mistake, such as a text in place of an address.
_MOST_SERVERS = 1000
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
    if any(map(_is_bare_ipv6, (url, host))):
        return "an IPv6 address is written in brackets, and its port behind them, as in [::1]:8001"
    if not colon or not _HOST.fullmatch(host):
        return f"it is not a host and a port; {_EXAMPLE}"
    if not (port.isascii() and port.isdecimal()) or not 1 <= int(port[:6]) <= 65535:
        return f"{port!r} is not a port from 1 to 65535; {_EXAMPLE}"
    return None


def _is_bare_ipv6(host: str) -> bool:
    try:
        return isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    except ValueError:
        return False


def client_addresses(url: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of the servers that a client asks.

    Args:
        url: One address; several, separated by commas; or a sequence of addresses. Each is one that `address_fault`
            accepts, or ``dns:///`` with a name and a port, which stands for every server that the name resolves to.

    Raises:
        ValueError: There is none, one cannot be used, or one is given twice. The message says what is allowed.
    """
    given = url.split(",") if isinstance(url, str) else list(url)
    if not 1 <= len(given) <= _MOST_SERVERS:
        raise ValueError(f"{len(given)} addresses: give 1 to {_MOST_SERVERS}, as in 127.0.0.1:8001")
    for one in given:
        if not isinstance(one, str):
            raise ValueError(f"one is {type(one).__name__}; {_EXAMPLE}")
        host = one.removeprefix(_DNS)
        fault = address_fault(host)
        if fault is None and is_name_of_several(one) and unix_path(host) is not None:
            fault = "a socket has no name to resolve; give dns:/// and a name, as in dns:///onetrunk-headless:8001"
        if fault is not None:
            raise ValueError(fault if len(given) == 1 else f"{one!r}: {fault}")
    if twice := sorted({one for one in given if given.count(one) > 1}):
        raise ValueError(f"{twice[0]!r} is given twice; give each server once")
    return tuple(given)


def is_name_of_several(address: str) -> bool:
    """Return whether an address stands for every server that its name resolves to."""
    return address.startswith(_DNS)


def unix_path(url: str) -> str | None:
    """Return the path of an address that is a Unix socket, or None for host and port."""
    return url.removeprefix(_UNIX) if url.startswith(_UNIX) else None


def split_address(url: str) -> tuple[str, int]:
    """Return host, without brackets, and port of an address that is no Unix socket."""
    host, _, port = url.removeprefix(_DNS).rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """Return the address of host and port; an IPv6 address is put in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family_of(host: str) -> socket.AddressFamily:
    """Return the family of a socket that listens on an IPv4 or an IPv6 address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


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
