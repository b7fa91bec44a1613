"""What the sync and the async client have in common: settings, and the catalogue they remember."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onetrunk.client.catalogue import Catalogue, read_catalogue
from onetrunk.client.fault import read_fault
from onetrunk.client.flight import Flight, Outdated
from onetrunk.client.retry import Backoff, Deadline
from onetrunk.client.rows import Rows
from onetrunk.client.traffic import Traffic
from onetrunk.protocol.errors import BadInput, OneTrunkError, UnknownTask
from onetrunk.protocol.names import MULTITASK

# The ensemble whose configuration tells the tasks of both.
CATALOGUE_MODEL = MULTITASK

# A head replaced on a running server is noticed after this time at the latest, at the price of one
# small request. Answers that do not fit any more are noticed at once.
CATALOGUE_AGE_S = 10.0

# How long closing a client waits at most for requests of calls that ended early, by a deadline or by
# Ctrl-C: hanging up cancels them, which the server may not survive (flight.ABANDONED_S).
CLOSE_GRACE_S = 10.0

# Triton itself takes and gives messages of this size; gRPC's default of 4 MiB refuses large batches.
MAX_MESSAGE_BYTES = 2**31 - 1

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The pauses between connection attempts are this client's business (retry.py); gRPC's own, up
    # to 120 s, would make every try in between fail at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True)
class Settings:
    """How a client behaves.

    Attributes:
        url: host and port of Triton's gRPC endpoint.
        timeout_s: the time of a whole call, however many requests it takes.
        max_in_flight: most requests of one call that are on their way at once.
        retries: how often one request may be sent again.
    """

    url: str
    timeout_s: float
    max_in_flight: int
    retries: int

    def __post_init__(self) -> None:
        if "://" in self.url:
            raise _wrong(
                f"url {self.url!r} names a protocol; give host and port of the gRPC endpoint, as in 127.0.0.1:8001"
            )
        if self.timeout_s <= 0:
            raise _wrong(f"timeout_s is {self.timeout_s}, expected more than 0")
        if self.max_in_flight < 1:
            raise _wrong(f"max_in_flight is {self.max_in_flight}, expected 1 or more")
        if self.retries < 0:
            raise _wrong(f"retries is {self.retries}, expected 0 or more")


class Session:
    """A client without its transport. Safe to share between threads: the catalogue is replaced, never changed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closed = False
        self.traffic = Traffic(most_abandoned=settings.max_in_flight)
        self._backoff = Backoff(settings.retries)
        self._known: tuple[float, Catalogue] | None = None

    def deadline(self, timeout_s: float | None) -> Deadline:
        """The end of a call that begins now.

        Raises:
            OneTrunkError: the client was closed.
        """
        self.check_open()
        if timeout_s is not None and timeout_s <= 0:
            raise _wrong(f"timeout_s is {timeout_s}, expected more than 0")
        return Deadline(self.settings.timeout_s if timeout_s is None else timeout_s)

    def check_open(self) -> None:
        """Raises OneTrunkError for a call that meets a closed client, before it sends or while it waits."""
        if self.closed:
            raise OneTrunkError("this client was closed; open another one")

    def remembered(self) -> Catalogue | None:
        """The catalogue, if it is known and young enough."""
        known = self._known
        return known[1] if known and time.monotonic() - known[0] < CATALOGUE_AGE_S else None

    def remember(self, response: Any) -> Catalogue:
        """Takes a ``ModelConfigResponse``. Raises ServerError if it is not an ensemble of ours."""
        catalogue = read_catalogue(response.config)
        self._known = (time.monotonic(), catalogue)
        return catalogue

    def pause_s(self, error: Any, tries: int, deadline: Deadline) -> float:
        """How long to wait before asking for the catalogue again. Raises what to tell the caller instead."""
        fault = read_fault(error, url=self.settings.url, timeout_s=deadline.timeout_s)
        return self._backoff.pause_s(fault, tries, deadline)

    def flight(self, rows: Rows, tasks: Sequence[str] | None, catalogue: Catalogue, deadline: Deadline) -> Flight:
        """The requests of one call.

        Raises:
            Outdated: a task is not in this catalogue; it may be in a fresh one.
            BadInput: rows and tasks do not fit.
        """
        try:
            return Flight(
                rows,
                tasks,
                catalogue,
                url=self.settings.url,
                max_in_flight=self.settings.max_in_flight,
                backoff=self._backoff,
                deadline=deadline,
                traffic=self.traffic,
            )
        except UnknownTask as error:
            raise Outdated(error) from None


def _wrong(message: str) -> BadInput:
    return BadInput.of_call(message)
