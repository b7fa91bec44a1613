"""TLS between clients and server: the files of a client, the options of commands, and why a connection failed.

The files are checked with OpenSSL before gRPC reads them: gRPC logs what is wrong with them and reports only that no
server can be reached. After a failed connection, `tls_fault` makes a handshake of its own for the same reason.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from onetrunk.protocol.address import split_address, unix_path
from onetrunk.protocol.errors import TlsError

Command = TypeVar("Command", bound=Callable[..., Any])

PROBE_TIMEOUT_S = 1.0
"""How long `tls_fault` waits for the server to connect and to answer, each."""

_CERTIFICATES, _KEY = "certificates in PEM", "a private key in PEM"


class TlsFiles(NamedTuple):
    """The contents of the files, in the order of ``grpc.ssl_channel_credentials``."""

    root_certificates: bytes | None
    private_key: bytes | None
    certificate_chain: bytes | None


@dataclass(frozen=True)
class Tls:
    """A client's side of TLS.

    Attributes:
        ca: The file of the authorities that may vouch for the server; None for those of the system.
        certificate: The file of the client's certificate and its chain, if the server wants one.
        key: The file of the certificate's private key, which has no passphrase.
        server_name: The name that the server's certificate must have, if it is not the host of the address.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def read(self) -> TlsFiles:
        """Return the contents of the files.

        Raises:
            TlsError: A file cannot be read, is not what it should be, or certificate and key do not belong together.
        """
        self.context()
        return TlsFiles(*(_read(file) if file is not None else None for file in (self.ca, self.key, self.certificate)))

    @property
    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """The options of a gRPC channel that go with the files."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def context(self, protocol: str = "h2") -> ssl.SSLContext:
        """Return the same settings for Python's own ``ssl``.

        Args:
            protocol: The name of what is spoken inside: ``h2`` for gRPC, which refuses everything else.

        Raises:
            TlsError: See `read`.
        """
        context = ssl.create_default_context()
        if self.ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_verify_locations(cadata=_read(self.ca).decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise TlsError(f"{self.ca}: this file of authorities does not hold {_CERTIFICATES}") from None
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise TlsError(f"the client's {given} was given without its {missing}: give both, or neither")
        if self.certificate is not None and self.key is not None:
            self._load_certificate(context, self.certificate, self.key)
        context.set_alpn_protocols([protocol])
        return context

    @staticmethod
    def _load_certificate(context: ssl.SSLContext, certificate: str | Path, key: str | Path) -> None:
        for file, begins, what in ((certificate, b"CERTIFICATE", _CERTIFICATES), (key, b"PRIVATE KEY", _KEY)):
            if begins + b"-----" not in _read(file):
                raise TlsError(f"{file}: this file does not hold {what}")
        try:
            # OpenSSL would ask for a passphrase on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsError(f"{key}: this is not the private key of the certificate in {certificate}") from None
            reason = error.reason or "it may have a passphrase, which gRPC cannot ask for"
            raise TlsError(f"{certificate}, {key}: certificate and key cannot be used: {reason}") from None


def tls_fault(url: str, tls: Tls | None, reason: str | None = None) -> str | None:
    """Return why client and server do not agree on TLS, and what to do about it; None if that is not what is wrong.

    gRPC says of most of these faults only that the socket was closed, so this makes a connection of its own, which
    takes up to two times `PROBE_TIMEOUT_S`.

    Args:
        url: The server's address.
        tls: The client's side; None if it does not use TLS.
        reason: What gRPC says. Unless it could not connect, nothing is tried. None if gRPC was not asked yet.
    """
    if reason is not None and "failed to connect" not in reason:
        return None
    path = unix_path(url)
    host, port = ("", 0) if path is not None else split_address(url)
    context = tls.context() if tls is not None else _unverified()
    name = (tls.server_name if tls is not None else None) or host or "localhost"
    try:
        with _connect(path, host, port) as plain, context.wrap_socket(plain, server_hostname=name) as secure:
            # In TLS 1.3 a server refuses a client's certificate after the client's side of the handshake is done.
            closed = not secure.recv(1)
    except ssl.SSLError as error:
        return _reading(error, url, tls)
    except (OSError, ValueError):  # ValueError: a host that cannot be the name in a certificate
        return None
    if tls is None:
        return _SERVER_HAS_TLS.format(url=url)
    return _wants_certificate(url, tls, "it closes the connection after the handshake") if closed else None


_SERVER_HAS_TLS = "the server at {url} speaks TLS, and this client does not: give --tls (in Python: tls=Tls(...))"


def _unverified() -> ssl.SSLContext:
    """Return a context that finds out whether a server speaks TLS, whoever it is. Nothing is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _connect(path: str | None, host: str, port: int) -> socket.socket:
    if path is None:
        return socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PROBE_TIMEOUT_S)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _reading(error: ssl.SSLError, url: str, tls: Tls | None) -> str | None:
    reason = (error.reason or "").replace("_", " ").lower()
    alert = "alert" in reason
    if tls is None:
        return _SERVER_HAS_TLS.format(url=url) if alert else None
    if isinstance(error, ssl.SSLCertVerificationError):
        trusted = str(tls.ca) if tls.ca is not None else "the system's authorities"
        return f"the certificate of the server at {url} is not accepted ({error.verify_message}; trusted: {trusted})"
    if alert and ("certificate" in reason or "unknown ca" in reason):
        return _wants_certificate(url, tls, reason)
    if alert:
        return f"the server at {url} ended the TLS handshake: {reason}"
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"):
        return f"the server at {url} does not speak TLS on this port: leave TLS out, or give another port"
    return None


def _wants_certificate(url: str, tls: Tls, reason: str) -> str:
    has = "none was given" if tls.certificate is None else f"does not accept {tls.certificate}"
    return f"the server at {url} wants a certificate of the client, and {has} ({reason}): --tls-cert, --tls-key"


def _read(file: str | Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise TlsError(f"{file}: {error.strerror}") from None


def tls_options(command: Command) -> Command:
    """Add the options of TLS to a command, which gets them as one argument ``tls``: a `Tls`, or None without."""

    @functools.wraps(command)
    def with_tls(
        *arguments: Any,
        tls: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_server_name: str | None,
        **options: Any,
    ) -> Any:
        # gRPC would log a failed handshake beside the command's one line about it. It reads this when it is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        wanted = tls or any(given is not None for given in (tls_ca, tls_cert, tls_key, tls_server_name))
        return command(*arguments, tls=Tls(tls_ca, tls_cert, tls_key, tls_server_name) if wanted else None, **options)

    file = click.Path(path_type=Path)
    for option in reversed(
        [
            click.option("--tls", is_flag=True, help="Use TLS. The options below include it."),
            click.option("--tls-ca", metavar="FILE", type=file, help="Trust these authorities, not the system's."),
            click.option("--tls-cert", metavar="FILE", type=file, help="The client's certificate."),
            click.option("--tls-key", metavar="FILE", type=file, help="The private key of --tls-cert."),
            click.option("--tls-server-name", metavar="NAME", help="Expect this name in the server's certificate."),
        ]
    ):
        with_tls = option(with_tls)
    return with_tls  # type: ignore[return-value]
