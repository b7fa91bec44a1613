"""The part of a client that does not depend on its transport: settings, and the catalogue that it remembers."""

from __future__ import annotations

import numbers
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from onetrunk.client.catalogue import Catalogue, read_catalogue
from onetrunk.client.replicas import Replicas
from onetrunk.client.retry import Deadline, RetryPolicy, classify_error
from onetrunk.client.rows import Rows
from onetrunk.client.scheduler import AnswerScheduler, RequestTracker, StaleCatalogue, Terms
from onetrunk.protocol.address import client_addresses, is_name_of_several
from onetrunk.protocol.api_key import AUTHORIZATION, check_api_key
from onetrunk.protocol.errors import BadInput, OneTrunkError, TlsError, UnknownTask, UserError
from onetrunk.protocol.names import MULTITASK
from onetrunk.protocol.tls import Tls, tls_fault

# The ensemble whose configuration describes the tasks of both.
CATALOGUE_MODEL = MULTITASK

# A head that is replaced on a running server is noticed after this time at the latest, at the price of one small
# request. Responses that no longer fit are noticed at once.
CATALOGUE_AGE_S = 10.0

# How long closing a client waits at most for requests of calls that ended early, by a deadline or by Ctrl-C: closing
# the connection cancels them, which the server may not survive (scheduler.ABANDONED_S).
CLOSE_GRACE_S = 10.0

# gRPC takes a time-out of very many seconds, or of infinitely many, for one that is over.
MAX_TIMEOUT_S = 1e6

# Triton itself takes and sends messages of this size; gRPC's default of 4 MiB refuses large batches.
MAX_MESSAGE_BYTES = 2**31 - 1

CHANNEL_OPTIONS = (
    # A server is named by who asks, and often is this machine: it is not asked through the environment's http_proxy.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The pauses between attempts to connect are this client's business (retry.py); gRPC's own, up to 120 s, would make
    # every try in between fail at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

# Of a client with several servers: one that went without a word, as a machine does that loses its power, is noticed
# after 15 s, so that another can be asked.
FLEET_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # of the ping itself: a minute by default, whatever the line above says
)

# Of a name that stands for several servers: they are asked in turn, and looked for again when one of them goes.
NAME_OPTIONS = (("grpc.lb_policy_name", "round_robin"), ("grpc.dns_min_time_between_resolutions_ms", 2_000))


@dataclass(frozen=True)
class Settings:
    """The settings of a client.

    Attributes:
        url: Host and port of the gRPC endpoint, or ``unix:`` and the path of its socket; several of them, in a sequence
            or with commas; or ``dns:///`` with a name and a port, for every server that the name resolves to.
        timeout_s: The time of a whole call, however many requests it takes.
        max_in_flight: The most requests of one call at a time.
        retries: How often one request may be sent again.
        tls: The client's side of TLS; None connects without.
        api_key: The key for a server that asks for one.
        addresses: The addresses of the servers.
    """

    url: str | Sequence[str]
    timeout_s: float
    max_in_flight: int
    retries: int
    tls: Tls | None = None
    api_key: str | None = field(default=None, repr=False)
    addresses: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str | Sequence):
            raise BadInput.of_call(f"url is {type(self.url).__name__}, expected a string such as 127.0.0.1:8001")
        try:
            object.__setattr__(self, "addresses", client_addresses(self.url))
        except ValueError as error:
            raise BadInput.of_call(f"url {self.url!r}: {error}") from None
        check_timeout(self.timeout_s)
        for name, least in (("max_in_flight", 1), ("retries", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise BadInput.of_call(f"{name} is {value!r}, expected an integer, {least} or more")
        if not isinstance(self.tls, Tls | None):
            raise BadInput.of_call(f"tls is {type(self.tls).__name__}, expected a Tls, or None to connect without")
        if self.api_key is not None:
            try:
                check_api_key(self.api_key, "api_key")
            except UserError as error:
                raise BadInput.of_call(str(error)) from None

    @property
    def servers(self) -> str:
        """The addresses of the servers, for messages."""
        return ", ".join(self.addresses)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of every request."""
        return ((AUTHORIZATION, f"Bearer {self.api_key}"),) if self.api_key is not None else ()


class ClientCore:
    """A client without its transport. Threads may share it: the catalogue is replaced, never changed.

    Attributes:
        settings: The settings.
        closed: Whether the client was closed.
        tracker: Counts the requests of all calls.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._credentials = grpc.ssl_channel_credentials(*settings.tls.read()) if settings.tls is not None else None
        self.closed = False
        self.tracker = RequestTracker(max_abandoned=settings.max_in_flight)
        # A name stands for two servers at least: how many there are, only gRPC knows.
        others = len(settings.addresses) - 1 + sum(map(is_name_of_several, settings.addresses))
        self._retry_policy = RetryPolicy(settings.retries, others)
        self._known: tuple[float, Catalogue] | None = None

    def open_replicas(self, transport: Any) -> Replicas:
        """Return the servers, with channels of a transport: ``grpc`` or ``grpc.aio``."""
        addresses = self.settings.addresses
        fleet = FLEET_OPTIONS if len(addresses) > 1 or is_name_of_several(addresses[0]) else ()
        return Replicas({address: self._open_channel(transport, address, fleet) for address in addresses})

    def _open_channel(self, transport: Any, address: str, fleet: tuple[tuple[str, Any], ...]) -> Any:
        options = (*CHANNEL_OPTIONS, *fleet, *(NAME_OPTIONS if is_name_of_several(address) else ()))
        if self.settings.tls is None:
            return transport.insecure_channel(address, options=options)
        options = (*options, *self.settings.tls.channel_options)
        return transport.secure_channel(address, self._credentials, options=options)

    def check_tls(self, error: Any, tries: int) -> None:
        """Check, after a request for the catalogue failed, that TLS is not the reason.

        It may block for two seconds a server, and does nothing before every server was asked: one of several that does
        not agree on TLS must not be in the way of the others.

        Args:
            error: The ``grpc.RpcError``.
            tries: The number of tries so far.

        Raises:
            TlsError: It is, so that trying again cannot help.
        """
        if error.code() is not grpc.StatusCode.UNAVAILABLE or tries < len(self.settings.addresses):
            return
        for address in self.settings.addresses:
            if fault := tls_fault(address, self.settings.tls, error.details() or ""):
                raise TlsError(fault)

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Return the end of a call that begins now.

        Raises:
            BadInput: The time-out is not a number above 0, or too large for gRPC.
            OneTrunkError: The client was closed.
        """
        self.check_open()
        if timeout_s is None:
            return Deadline(self.settings.timeout_s)
        return Deadline(check_timeout(timeout_s))

    def check_open(self) -> None:
        """Check, before a call sends and while it waits, that the client was not closed.

        Raises:
            OneTrunkError: It was closed.
        """
        if self.closed:
            raise OneTrunkError("this client was closed; open another one")

    def remembered(self) -> Catalogue | None:
        """Return the catalogue if it is known and not too old."""
        known = self._known
        return known[1] if known and time.monotonic() - known[0] < CATALOGUE_AGE_S else None

    def remember(self, response: Any) -> Catalogue:
        """Read and remember a ``ModelConfigResponse``.

        Raises:
            ServerError: It is not an ensemble that ``build-repo`` wrote.
        """
        catalogue = read_catalogue(response.config)
        self._known = (time.monotonic(), catalogue)
        return catalogue

    def pause_s(self, error: Any, tries: int, deadline: Deadline) -> float:
        """Return how long to wait before asking for the catalogue again.

        Args:
            error: The ``grpc.RpcError`` of the last try.
            tries: The number of tries so far.
            deadline: The end of the call.

        Raises:
            OneTrunkError: The failure is final.
        """
        failure = classify_error(error, url=self.settings.servers, timeout_s=deadline.timeout_s)
        return self._retry_policy.pause_s(failure, tries, deadline)

    def terms(self, deadline: Deadline) -> Terms:
        """Return on what terms a call sends its requests.

        Args:
            deadline: The end of the call.
        """
        return Terms(self.settings.servers, self.settings.max_in_flight, self._retry_policy, deadline, self.tracker)

    def schedule(
        self, rows: Rows, tasks: Sequence[str] | None, catalogue: Catalogue, deadline: Deadline
    ) -> AnswerScheduler:
        """Plan the first round of a call.

        Args:
            rows: The input.
            tasks: The names of the tasks; None asks every task that fits.
            catalogue: The catalogue.
            deadline: The end of the call.

        Raises:
            StaleCatalogue: A task is not in this catalogue. It may be in a fresh one.
            BadInput: Rows and tasks do not fit.
        """
        try:
            return AnswerScheduler(rows, tasks, catalogue, self.terms(deadline))
        except UnknownTask as error:
            raise StaleCatalogue(error) from None


def check_timeout(timeout_s: object) -> float:
    """Return a time-out in seconds.

    Raises:
        BadInput: It is not a number above 0, or too large for gRPC.
    """
    if isinstance(timeout_s, numbers.Real) and 0 < float(timeout_s) <= MAX_TIMEOUT_S:
        return float(timeout_s)
    raise BadInput.of_call(f"timeout_s is {timeout_s!r}, expected 0 < timeout_s <= {MAX_TIMEOUT_S:g}")
