"""The calls over gRPC that wait for their clients: for a request to come, or for an answer to be taken.

Each kind is bounded, so that a client that opens calls and goes no further cannot shut the others out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc.aio

from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.connection import LEAST_READ_BYTES, UNREAD_TIMEOUT_S
from onetrunk.serving.front.settings import MIB

log = logging.getLogger(__name__)

# Calls that wait for no longer than this are no fault of their clients: many may come at a time.
MOMENT_S = 1.0
# The calls, streams among them, that may wait for the next request of their client. Of each, gRPC may have received all
# but a byte, which nobody can see: of so many 512 MiB together.
MOST_SILENT = 64
# The calls whose answers may wait for their clients, and the size of all such answers. gRPC holds each of them twice.
MOST_UNTAKEN = 256
MAX_UNTAKEN_BYTES = 128 * MIB

Context = Any
"""A ``grpc.aio.ServicerContext``."""

Endpoint = tuple[str, int]
"""An address and a port."""

# Where the bytes that the other end has acknowledged stand in Linux's ``tcp_info``.
_BYTES_ACKED = struct.Struct("=120xQ")


class SilentCalls:
    """The calls that wait for requests. If they are too many, those that have waited the longest are ended."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[Any], float] = {}  # since when
        self._expired: set[asyncio.Future[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def next_of(self, context: Context, timeout_s: float | None = None) -> bytes | None:
        """Return the next request of a call, or None if there will be none.

        Args:
            context: The call. The iterator of requests, which gRPC offers too, would keep a request in memory until it
                is asked for the next one.
            timeout_s: The time in which it must come; None for any.

        Raises:
            RefusedError: The call is to be ended.
            TimeoutError: It did not come in time.
        """
        coming: asyncio.Future[Any] = asyncio.ensure_future(context.read())
        # Cheaper than a time-out of asyncio's or anyio's, and every request comes through here.
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, coming) if timeout_s else None
        self._waiting[coming] = time.monotonic()
        if self._timer is None:
            self._end_oldest()
        try:
            found = await coming
            return None if found is grpc.aio.EOF else found
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

    def _end_oldest(self) -> None:
        """End those that are too many, and look again when the next one has waited for a moment."""
        self._timer = None
        now = time.monotonic()
        while len(self._waiting) > MOST_SILENT:
            oldest, since = next(iter(self._waiting.items()))
            if now - since < MOMENT_S:
                self._timer = asyncio.get_running_loop().call_later(since + MOMENT_S - now, self._end_oldest)
                return
            del self._waiting[oldest]
            oldest.cancel()

    def _expire(self, coming: asyncio.Future[Any]) -> None:
        if coming in self._waiting:
            del self._waiting[coming]
            self._expired.add(coming)
            coming.cancel()


@dataclass
class _Call:
    """A call, and what it has for its client, since when."""

    peer: str
    since: float = 0.0
    answers: int = 0
    size: int = 0


@dataclass(frozen=True)
class _Reader:
    """A client that lets answers wait, and how many bytes its end of the connection had acknowledged at a moment."""

    since: float
    acked: int


class UntakenAnswers:
    """The calls whose answers are on their way to their clients.

    gRPC waits until a client has taken an answer, for ever, and lets nobody end such a call. So the connection is shut
    down, with all its calls, if for too long a time no call of it comes to an end and too few bytes are taken (as over
    HTTP: ``connection``), or if it holds the most of too many calls or bytes. That is looked at now and then: an answer
    that the process has not come to send yet is no fault of its client.

    Args:
        port: The port of this server, by which its connections are known.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._calls: dict[Context, _Call] = {}
        self._readers: dict[str, _Reader] = {}
        self._size = 0
        self._lacks_room = False
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, context: Context) -> None:
        """Note that a call has begun."""
        if context not in self._calls:
            self._calls[context] = _Call(context.peer())
            context.add_done_callback(self._over)

    def add(self, context: Context, size: int = 0) -> None:
        """Note that a call has an answer of so many bytes for its client.

        Raises:
            RefusedError: There is no room for it.
        """
        call = self._calls.get(context)
        if call is None:  # it is over
            return
        # One alone may be as large as it is.
        if size and self._size and self._size + size > MAX_UNTAKEN_BYTES:
            self._lacks_room = True
            raise RefusedError(
                429, f"the answers that wait for their clients hold {self._size // MIB} MiB already: try again later"
            )
        if not call.answers:
            call.since = time.monotonic()
        call.answers += 1
        call.size += size
        self._size += size
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MOMENT_S, self._look)

    def taken(self, context: Context, size: int) -> None:
        """Note that the client of a stream has an answer of so many bytes."""
        call = self._calls.get(context)
        if call is not None and call.answers:
            call.answers -= 1
            call.size -= size
            self._size -= size
            call.since = time.monotonic()
            self._readers.pop(call.peer, None)

    def _over(self, context: Context) -> None:
        call = self._calls.pop(context)
        self._forget(call)
        self._readers.pop(call.peer, None)

    def _forget(self, call: _Call) -> None:
        self._size -= call.size
        call.answers = call.size = 0

    def _look(self) -> None:
        """Hang up on the clients that let answers wait for too long, or too many of them."""
        going_on = any(call.answers for call in self._calls.values())
        self._timer = asyncio.get_running_loop().call_later(MOMENT_S, self._look) if going_on else None
        now = time.monotonic()
        waiting: defaultdict[str, list[_Call]] = defaultdict(list)
        for call in self._calls.values():
            if call.answers and now - call.since >= MOMENT_S:
                waiting[call.peer].append(call)
        ended = self._late(waiting, now)
        for peer in ended:
            del waiting[peer]
        ended |= _take_largest(waiting, len, MOST_UNTAKEN)
        if self._lacks_room:
            ended |= _take_largest(waiting, _size_of, MAX_UNTAKEN_BYTES // 2)
            self._lacks_room = False
        if ended:
            self._hang_up(ended)

    def _late(self, waiting: Collection[str], now: float) -> set[str]:
        """Return the clients that have taken too little in their time, and note how far the others are."""
        due = {peer for peer in waiting if (r := self._readers.get(peer)) is None or now - r.since >= UNREAD_TIMEOUT_S}
        late = set()
        # One that is not found has hung up just now.
        for peer, connection in _connections(due, self._port):
            (acked,) = _BYTES_ACKED.unpack(connection.getsockopt(socket.SOL_TCP, socket.TCP_INFO, _BYTES_ACKED.size))
            before = self._readers.get(peer)
            if before is not None and acked - before.acked < LEAST_READ_BYTES:
                late.add(peer)
            else:
                self._readers[peer] = _Reader(now, acked)
        return late

    def _hang_up(self, peers: set[str]) -> None:
        """End the connections of these clients, and forget what waits for them."""
        ended = set()
        for peer, connection in _connections(peers, self._port):
            # What the kernel has of their answers is thrown away.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):  # it has hung up just now
                connection.shutdown(socket.SHUT_RDWR)
            ended.add(peer)
        for call in self._calls.values():
            if call.peer in ended:
                self._forget(call)
        log.warning("clients over gRPC did not take their answers; connections that were closed: %d", len(ended))


def _size_of(calls: list[_Call]) -> int:
    return sum(call.size for call in calls)


def _take_largest(waiting: dict[str, list[_Call]], weigh: Callable[[list[_Call]], int], most: int) -> set[str]:
    """Take out clients, the one with the most first, until the others have no more than so much together.

    Args:
        waiting: Client -> its calls. Those that are taken out are gone from it.
        weigh: How much the calls of a client are.
        most: How much those of all may be.

    Returns:
        The clients that were taken out.
    """
    taken = set()
    total = sum(map(weigh, waiting.values()))
    for peer in sorted(waiting, key=lambda peer: weigh(waiting[peer]), reverse=True):
        if total <= most:
            break
        total -= weigh(waiting.pop(peer))
        taken.add(peer)
    return taken


def endpoint_of(peer: str) -> Endpoint | None:
    """Return the other end of a connection as gRPC names it, such as ``ipv6:%5B::1%5D:443``; None for another kind."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    return (_bare(host.strip("[]")), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None


def _bare(host: str) -> str:
    """Return an address without its scope, which gRPC and Python write in two ways.

    A client over IPv4 of a server that listens on IPv6 has an address of both; gRPC gives that of IPv4.
    """
    return host.removeprefix("::ffff:").partition("%")[0]


def _connections(peers: Collection[str], port: int) -> Iterator[tuple[str, socket.socket]]:
    """Find the sockets of this process that connect some clients, which gRPC keeps to itself, with one of its ports.

    Yields:
        The client, as gRPC names it, and a copy of the socket, which is open until the next one is asked for.
    """
    wanted = {endpoint_of(peer): peer for peer in peers}
    if not wanted:
        return
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), _copy_of(int(name)) as found:  # most are files or listen, and some are closed meanwhile
            address = found.getpeername()
            peer = wanted.get((_bare(address[0]), address[1])) if isinstance(address, tuple) else None
            if peer is not None and found.getsockname()[1] == port:
                yield peer, found


def _copy_of(descriptor: int) -> socket.socket:
    """Copy a socket, since gRPC may close its own at any moment, and another file would have its number.

    Raises:
        OSError: It is no socket.
    """
    copy = os.dup(descriptor)
    try:
        # The family says how long an address may be.
        return socket.socket(socket.AF_INET6, socket.SOCK_STREAM, fileno=copy)
    except OSError:
        os.close(copy)
        raise
