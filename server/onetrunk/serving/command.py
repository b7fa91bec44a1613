"""Host and ports of a server, and Triton's command line."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from onetrunk.protocol.address import family_of, join_address
from onetrunk.protocol.errors import ServerError, UserError
from onetrunk.protocol.names import ENSEMBLES
from onetrunk.serving.front.settings import GRPC_PORT, GRPC_SOCKET, Tracing
from onetrunk.serving.installation import Installation, Runtime


class PortTakenError(ServerError):
    """Another process listens where the front should."""


@dataclass(frozen=True)
class Address:
    """Where a server listens. Port 0 stands for any free port, which is still to be chosen."""

    host: str  # an IPv4 or IPv6 address
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def ports(self) -> set[int]:
        """The three ports."""
        return {self.http_port, self.grpc_port, self.metrics_port}

    def reach(self, port: int) -> str:
        """Return `host:port`, as this machine reaches the server; an IPv6 address is in brackets."""
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return join_address(here.get(self.host, self.host), port)


def resolve_host(host: str) -> str:
    """Return the address of a host name: the IPv4 address, where it also has one.

    Raises:
        UserError: The name is unknown, or the address has a zone.
    """
    if "%" in host:
        raise UserError(f"--host {host:.60}: an address with a zone; give one that is reachable without, or ::")
    try:
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a name that is too long
        raise UserError(f"--host {host:.60}: neither an address nor the name of one") from None
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])


def choose_ports(wanted: Address) -> Address:
    """Check that the given ports are free, and choose those that are 0.

    Raises:
        PortTakenError: A port is in use; the message names it and the option.
        UserError: The host is no address of this machine, or a port is given twice or out of range.
    """
    chosen: dict[str, int] = {}
    # All sockets stay open until all ports are found, so that none is chosen twice.
    with ExitStack() as sockets:
        for field in ("http_port", "grpc_port", "metrics_port"):
            port = getattr(wanted, field)
            option = f"--{field.replace('_', '-')} {port}"
            if not 0 <= port <= 65535:
                raise UserError(f"{option}: no such port; give a number from 0 to 65535")
            if port and port in chosen.values():
                raise UserError(f"{option}: another endpoint has this port already; give each its own")
            try:
                listener = sockets.enter_context(socket.socket(family_of(wanted.host), socket.SOCK_STREAM))
            except OSError as error:
                raise UserError(f"--host {wanted.host}: this machine cannot listen on it: {error.strerror}") from None
            # As servers do: ports whose last connections are still in TIME_WAIT are free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((wanted.host, port))
                listener.listen(1)
            except PermissionError:
                raise UserError(f"{option}: needs root's rights; give a port above 1023") from None
            except OSError as error:
                if port == 0 or error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
                    raise UserError(f"--host {wanted.host}: not an address of this machine") from None
                raise PortTakenError(f"port {port} is in use; give another with {option.split()[0]}") from None
            chosen[field] = listener.getsockname()[1]
    return Address(wanted.host, chosen["http_port"], chosen["grpc_port"], chosen["metrics_port"])


# How long Triton may wait for requests in flight when it stops.
EXIT_TIMEOUT_S = 5
# How long one model may take to load. Triton's own 30 s are short if eight models load on two cores.
LOAD_TIMEOUT_S = 120


def triton_command(
    installation: Installation,
    runtime: Runtime,
    repository: Path,
    *,
    verbose: bool = False,
    tracing: Tracing | None = None,
) -> list[str]:
    """Build the command line that serves a repository.

    Triton listens on Unix sockets in a folder that only this user may enter, so that it needs no key: the front is the
    only way to it.

    Args:
        installation: Which Triton.
        runtime: The process's private folder.
        repository: The model repository.
        verbose: Whether Triton logs each request.
        tracing: Where it sends traces; None for nowhere.
    """
    sockets = runtime.sockets
    command = [
        str(installation.binary),
        f"--model-repository={repository}",
        f"--backend-directory={runtime.backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in ENSEMBLES),  # loading an ensemble loads its parts
        # Generated configs are complete. Completing them would start every model's process twice, which takes four
        # seconds instead of one.
        "--disable-auto-complete-config",
        f"--grpc-address=unix:{sockets.folder / GRPC_SOCKET}",
        f"--http-address=unix:{sockets.http_socket}",
        f"--metrics-address=unix:{sockets.metrics_socket}",
        # The port of gRPC becomes part of the socket's name; the other two are not used, and must differ.
        f"--grpc-port={GRPC_PORT}",
        f"--http-port={GRPC_PORT + 1}",
        f"--metrics-port={GRPC_PORT + 2}",
        "--allow-gpu-metrics=false",
        # Quantiles of each model's times beside their sums.
        "--metrics-config=summary_latencies=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={runtime.shm_prefix}",
        f"--backend-config=python,stub-timeout-seconds={LOAD_TIMEOUT_S}",
    ]
    if tracing is not None:
        command += [
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            # The front decides what is traced: what it passes on with a traceparent is, and nothing else.
            f"--trace-config=rate={2**31 - 1}",
            f"--trace-config=opentelemetry,url={tracing.url}",
        ]
    if verbose:
        command.append("--log-verbose=1")
    return command
