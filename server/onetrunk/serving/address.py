"""Host and ports of a server, and finding out that a port is taken before Triton does."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

import psutil

from onetrunk.protocol.errors import ServerError, UserError


class PortTakenError(ServerError):
    """Another process listens where Triton should."""


@dataclass(frozen=True)
class Address:
    """Where a server listens. Port 0 means: any free one, still to be chosen."""

    host: str  # an IPv4 address
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def ports(self) -> set[int]:
        """All three ports."""
        return {self.http_port, self.grpc_port, self.metrics_port}

    @property
    def reachable_host(self) -> str:
        """The address at which this machine itself reaches the server."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host


def resolve_host(host: str) -> str:
    """Gives the IPv4 address of a host name: Triton's HTTP server takes addresses only.

    Raises:
        UserError: The name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError:
        raise UserError(f"--host {host}: not an IPv4 address or the name of one") from None
    return str(found[0][4][0])


def choose_ports(wanted: Address) -> Address:
    """Checks that the ports named are free, and chooses those that are not named.

    Raises:
        PortTakenError: A port is in use; the message names it and the option.
        UserError: The host is no address of this machine, or a port is given twice.
    """
    chosen: dict[str, int] = {}
    # All sockets stay open until all ports are found, so that none is chosen twice.
    with ExitStack() as sockets:
        for field in ("http_port", "grpc_port", "metrics_port"):
            port = getattr(wanted, field)
            option = f"--{field.replace('_', '-')} {port}"
            if port and port in chosen.values():
                raise UserError(f"{option}: another endpoint has this port already; give each its own")
            listener = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As servers do: ports whose last connections are still in TIME_WAIT are free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((wanted.host, port))
                listener.listen(1)
            except PermissionError:
                raise UserError(f"{option}: needs root's rights; give a port above 1023") from None
            except OSError as error:
                if port == 0 or error.errno == errno.EADDRNOTAVAIL:
                    raise UserError(f"--host {wanted.host}: not an address of this machine") from None
                raise PortTakenError(f"port {port} is in use; give another with {option.split()[0]}") from None
            chosen[field] = listener.getsockname()[1]
    return Address(wanted.host, chosen["http_port"], chosen["grpc_port"], chosen["metrics_port"])


def listens_on(pid: int, ports: set[int]) -> bool:
    """Whether a process itself listens on all of these ports.

    Triton answers over gRPC before it has tried the other two, logs that it serves metrics before it has, and another
    server may be what answers on a port that it could not get. The kernel knows.
    """
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.NoSuchProcess:
        return False
    return ports <= {found.laddr.port for found in connections if found.status == psutil.CONN_LISTEN}
