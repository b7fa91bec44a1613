"""What a front is started with."""

from __future__ import annotations

import errno
import json
import os
import ssl
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from onetrunk.protocol.errors import UserError

MIB = 1 << 20
MOST_TEXTS = 16_384
"""The greatest ``max_texts``: what a request says of so many is read at once, while others wait."""

# The variable by which prometheus-client learns where the processes of one front keep their metrics.
MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

# Triton adds the port to the name of gRPC's socket.
GRPC_SOCKET, GRPC_PORT = "grpc.sock", 1
HTTP_SOCKET = "http.sock"
METRICS_SOCKET = "metrics.sock"


class Limits(BaseModel):
    """What the front accepts. What goes beyond is refused before it is copied or passed on.

    Attributes:
        max_body_bytes: The size of one request, also after decompression.
        max_texts: The rows of one request.
        max_text_bytes: The size of one text in UTF-8. A trunk reads some hundred tokens of it.
        max_in_flight: The requests that Triton works on at a time.
        max_waiting: The requests that wait for their turn.
        max_pending_bytes: The size of all requests together that are read, wait or are in flight.
        max_connections: The connections that are open at a time, for HTTP.
        body_timeout_s: The seconds in which a client must have sent its request.
        max_connection_age_s: After so many seconds a connection for gRPC is closed, once its requests are answered, so
            that its client looks for servers again; 0 leaves it open.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(default=8 * MIB, ge=1024, le=1024 * MIB)
    max_texts: int = Field(default=1024, ge=1, le=MOST_TEXTS)
    max_text_bytes: int = Field(default=128 * 1024, ge=1)
    max_in_flight: int = Field(default=64, ge=1)
    max_waiting: int = Field(default=512, ge=0)
    max_pending_bytes: int = Field(default=256 * MIB, ge=1024)
    max_connections: int = Field(default=1024, ge=1)
    body_timeout_s: float = Field(default=30.0, gt=0)
    max_connection_age_s: float = Field(default=0.0, ge=0)

    def shared_by(self, workers: int) -> Limits:
        """Return the limits of each of several processes, so that together they keep to these."""
        counts = ("max_in_flight", "max_waiting", "max_pending_bytes", "max_connections")
        shares = {name: -(-getattr(self, name) // workers) for name in counts}
        # A body without an announced size is counted as the largest there may be, until it has been read.
        shares["max_pending_bytes"] = max(shares["max_pending_bytes"], 2 * self.max_body_bytes)
        return self.model_copy(update=shares)


class TritonAddress(BaseModel):
    """Where Triton listens: Unix sockets in a folder that nobody else may enter.

    Attributes:
        folder: The folder of the three sockets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path

    @property
    def grpc(self) -> str:
        """The target for gRPC."""
        return f"unix:{self.folder / GRPC_SOCKET}:{GRPC_PORT}"

    @property
    def http_socket(self) -> Path:
        """The socket for HTTP."""
        return self.folder / HTTP_SOCKET

    @property
    def metrics_socket(self) -> Path:
        """The socket for Triton's metrics."""
        return self.folder / METRICS_SOCKET

    def start(self) -> tuple[int, int] | None:
        """Return what tells one start of Triton from another: its socket, made anew each time; None without one."""
        try:
            found = self.http_socket.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def is_open(self) -> bool:
        """Return whether Triton listens on all three. gRPC's socket is the first."""
        grpc_socket = self.folder / f"{GRPC_SOCKET}:{GRPC_PORT}"
        return all(socket.exists() for socket in (grpc_socket, self.http_socket, self.metrics_socket))


class ServerTls(BaseModel):
    """The certificate of the front, in PEM files.

    Attributes:
        cert: The certificate, with its chain.
        key: Its private key.
        client_ca: The authority of the clients' certificates; None if clients need none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def read(cls, cert: Path, key: Path, client_ca: Path | None = None) -> ServerTls:
        """Return the files after a check that they can be used.

        Raises:
            UserError: A file cannot be read, or the key is not the certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            for file in filter(None, (cert, key, client_ca)):
                file.read_bytes()
            context.load_cert_chain(cert, key, password=_no_password)
        except ssl.SSLError as error:
            raise UserError(f"--tls-cert {cert} and --tls-key {key} do not fit: {error.reason or error}") from None
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from None
        if client_ca is not None:
            try:
                context.load_verify_locations(client_ca)
            except ssl.SSLError as error:
                raise UserError(f"--tls-client-ca {client_ca} holds no certificate: {error.reason or error}") from None
        return cls(cert=cert.absolute(), key=key.absolute(), client_ca=client_ca.absolute() if client_ca else None)


class Tracing(BaseModel):
    """Where traces go.

    Attributes:
        url: The OTLP endpoint for traces over HTTP, such as ``http://127.0.0.1:4318/v1/traces``.
        share: The share of the requests without a trace of their own that get one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://[^\s/]+(/\S*)?$")
    share: float = Field(default=0.01, ge=0, le=1)


class Sampling(BaseModel):
    """Where texts are kept for labelling.

    Attributes:
        path: The file of JSON lines. A link is followed once, when this is made.
        size: The most texts that are kept of each task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    size: int = Field(default=1000, ge=1, le=100_000)

    @field_validator("path")
    @classmethod
    def _resolved(cls, path: Path) -> Path:
        return Path(os.path.realpath(path))

    def notice(self) -> str:
        """Return a line that says what is kept."""
        return f"Texts are kept: of each task up to {self.size:,}, with their answers, in {self.path} (--sample)"


class FrontSettings(BaseModel):
    """Everything that a front is started with.

    Attributes:
        host: The address to listen on.
        http_port: The port for HTTP.
        grpc_port: The port for gRPC.
        metrics_port: The port for Prometheus.
        admin_key: The key that calls which change the server need. Without one, nobody may make them.
        api_keys: The keys of which every client needs one; without any, whoever reaches the front may ask.
        tls: The certificate; None for plain connections.
        limits: What is accepted.
        repository: The repository that is served, whose files a Triton that starts follows, and for the log of its
            deployments; None if the front cannot see it.
        verify_key: The file of the public key by which the repository's manifest must be signed before files are
            followed; None for no signature.
        tracing: Where traces go; None for nowhere.
        sample: Where texts are kept for labelling; None keeps none.
        verbose: Whether every request is logged, or only those that the server failed.
        share_ports: Whether other processes of the same front listen on the same ports.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    admin_key: SecretStr | None = None
    api_keys: tuple[SecretStr, ...] = ()
    tls: ServerTls | None = None
    limits: Limits = Field(default_factory=Limits)
    repository: Path | None = None
    verify_key: Path | None = None
    tracing: Tracing | None = None
    sample: Sampling | None = None
    verbose: bool = False
    share_ports: bool = False

    def line(self) -> str:
        """Return the settings as one line of JSON, the keys included, for a pipe that nobody else reads."""
        key = self.admin_key.get_secret_value() if self.admin_key is not None else None
        api_keys = [one.get_secret_value() for one in self.api_keys]
        return json.dumps(self.model_dump(mode="json") | {"admin_key": key, "api_keys": api_keys})


def _no_password() -> str:
    """Refuse a key that asks for a password, which would wait at the terminal."""
    raise UserError("--tls-key is locked with a password: give one that is not, and that only you may read")


def port_taken(port: int) -> OSError:
    """Return the error of a port on which another process listens."""
    return OSError(errno.EADDRINUSE, f"port {port} is in use")
