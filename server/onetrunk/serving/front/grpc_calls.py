"""The calls over gRPC that wait for their clients: for a request to come, or for an answer to be taken.

Each kind is bounded, so that a client that opens calls and goes no further cannot shut the others out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.connection import LEAST_READ_BYTES, MAX_UNREAD_BYTES, UNREAD_TIMEOUT_S

log = logging.getLogger(__name__)

# The calls, streams among them, that may wait for the next request of their client.
MOST_SILENT = 256
# The calls whose answers may wait for their clients to take them.
MOST_UNTAKEN = 256

Context = Any
"""A ``grpc.aio.ServicerContext``."""

Endpoint = tuple[str, int]
"""An address and a port."""


class SilentCalls:
    """The calls that wait for requests. If they are too many, the one that has waited the longest is ended."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bytes], None] = {}
        self._expired: set[asyncio.Future[bytes]] = set()

    async def next_of(self, requests: AsyncIterator[bytes], timeout_s: float | None = None) -> bytes | None:
        """Return the next request of a call, or None if there will be none.

        Args:
            requests: The requests of the call.
            timeout_s: The time in which it must come; None for any.

        Raises:
            RefusedError: The call is to be ended.
            TimeoutError: It did not come in time.
        """
        coming = asyncio.ensure_future(anext(requests))
        # Cheaper than a time-out of asyncio's or anyio's, and every request comes through here.
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, coming) if timeout_s else None
        self._waiting[coming] = None
        if len(self._waiting) > MOST_SILENT:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        try:
            return await coming
        except StopAsyncIteration:
            return None
        except asyncio.CancelledError:
            if coming in self._waiting:  # the call itself ends
                coming.cancel()
                raise
            if coming in self._expired:
                raise TimeoutError from None
            raise RefusedError(
                429, f"more than {MOST_SILENT} calls wait for their clients, and this one was silent for the longest"
            ) from None
        finally:
            self._waiting.pop(coming, None)
            self._expired.discard(coming)
            if timer is not None:
                timer.cancel()

    def _expire(self, coming: asyncio.Future[bytes]) -> None:
        if coming in self._waiting:
            del self._waiting[coming]
            self._expired.add(coming)
            coming.cancel()


@dataclass
class _Answer:
    """One that waits to be taken by a peer, until a moment of ``time.monotonic``."""

    peer: str
    until: float
    size: int


class UntakenAnswers:
    """The calls whose answers are on their way to clients.

    gRPC itself waits for as long as a client likes, and lets nobody end such a call. So the connection of a client
    that takes too little, for too long, is shut down, with all its calls; as over HTTP (``connection``), a client must
    take so many bytes in so much time.

    Args:
        port: The port of this server, by which its connections are known.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._calls: set[Context] = set()
        self._waiting: dict[Context, _Answer] = {}
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def sending(self, context: Context, size: int = 0) -> None:
        """Note that a call sends an answer of so many bytes. It is taken when the call ends, or by ``taken``."""
        if context not in self._calls:
            self._calls.add(context)
            context.add_done_callback(self._over)
        self.taken(context)
        until = time.monotonic() + UNREAD_TIMEOUT_S * (1 + size // LEAST_READ_BYTES)
        self._waiting[context] = _Answer(context.peer(), until, size)
        self._size += size
        if len(self._waiting) > MOST_UNTAKEN or self._size > MAX_UNREAD_BYTES:
            self._end({next(iter(self._waiting.values())).peer})
        if self._timer is None:
            self._watch()

    def taken(self, context: Context) -> None:
        """Note that the client has the answer of a call."""
        found = self._waiting.pop(context, None)
        if found is not None:
            self._size -= found.size

    def _over(self, context: Context) -> None:
        self._calls.discard(context)
        self.taken(context)

    def _watch(self) -> None:
        """Look again when the time of the first answer is over."""
        self._timer = None
        if self._waiting:
            wait = min(answer.until for answer in self._waiting.values()) - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(wait, 0.0), self._end_late)

    def _end_late(self) -> None:
        now = time.monotonic()
        if late := {answer.peer for answer in self._waiting.values() if answer.until <= now}:
            self._end(late)
        self._watch()

    def _end(self, peers: set[str]) -> None:
        """End the connections of these peers, and forget the calls that wait for them."""
        for context in [context for context, answer in self._waiting.items() if answer.peer in peers]:
            self.taken(context)
        try:
            shut_down({peer for peer in map(endpoint_of, peers) if peer is not None}, self._port)
        except OSError:  # no file can be opened now; the call that is sent at this moment can do nothing for that
            log.exception("connections whose clients take no answers stay open")


def endpoint_of(peer: str) -> Endpoint | None:
    """Return the other end of a connection as gRPC names it, such as ``ipv6:%5B::1%5D:443``; None for another kind."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    return (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None


def shut_down(peers: Collection[Endpoint], port: int) -> int:
    """Shut down this process's connections from some peers to a port of its own; return how many there were.

    For a library that keeps its sockets to itself: it reads the end of the connection, as if the peer had closed it.
    """
    closed = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, or no socket, or one without a peer
            closed += _shut_down(int(name), peers, port)
    return closed


def _shut_down(descriptor: int, peers: Collection[Endpoint], port: int) -> bool:
    """Shut down a socket, if it is a connection from one of these peers to this port.

    Raises:
        OSError: It is no socket that has a peer.
    """
    copy = os.dup(descriptor)  # the library may close its own at any moment, and the next file has its number
    try:
        found = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with found:
        address = found.getpeername()
        if found.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        # A client over IPv4 of a server that listens on IPv6 has an address of both.
        host, of_peer = address[0].removeprefix("::ffff:"), address[1]
        if (host, of_peer) not in peers or found.getsockname()[1] != port:
            return False
        found.shutdown(socket.SHUT_RDWR)
        return True
