"""A connection over HTTP, which is ended when its client sends or takes too little for the memory that it holds."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from onetrunk.serving.front.settings import MIB

# The time for a client to send the head of a request, and the rest of a body that was refused.
HEAD_TIMEOUT_S = 10.0
# httptools keeps a head in memory until it is complete. One that comes in a single piece may be larger.
MAX_HEAD_BYTES = 64 * 1024
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

# What hides the offer of another protocol is as long as the offer, so that no byte of a request moves.
_UPGRADE, _NO_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE), b"\r\nx-upgrd:"

# In so many seconds, a client must take so many bytes of an answer that waits for it.
UNREAD_TIMEOUT_S = 30.0
LEAST_READ_BYTES = 64 * 1024
# What all answers together may hold that nobody takes. Beyond that, the one that waits the longest is dropped.
MAX_UNREAD_BYTES = 256 * MIB


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with bounds for a head, trailers, and answers that are not taken.

    uvicorn alone would wait for the rest of a head for ever, and keep all of it that comes, all trailers behind a body
    in chunks, and all answers. And it would lose the body of a request that offers another protocol, as Java's client
    does with every first request, since httptools ends a request there: so that offer, which a server may ignore, is
    hidden from it.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._in_head = True
        self._advanced = False
        self._stray_bytes = 0
        self._held_back = b""
        self._idle_since = time.monotonic()
        self._make_room()
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread_since = float("inf")

    def _make_room(self) -> None:
        """End the connection that has asked nothing for the longest, if there would be more than are allowed."""
        most = self.config.limit_concurrency
        if most is None or len(self.connections) < most:
            return
        staying = [one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing()]
        idle = [one for one in staying if one is not self and one.is_idle]
        if len(staying) >= most and idle:
            min(idle, key=lambda one: one._idle_since).transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self._in_head and (self.cycle is None or self.cycle.response_complete)

    def connection_lost(self, error: Exception | None) -> None:
        """End all timers."""
        self._end_timer()
        self._end_unread_timer()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Take some bytes, unless too many lead to nothing."""
        self._advanced = False
        if self._in_head:
            data, self._held_back = self._held_back + data, b""
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end and (cut := head.rfind(b"\r")) >= 0 and len(head) - cut < MAX_HEAD_BYTES:
                # The name of the next header may not have come as a whole.
                head, self._held_back = head[:cut], head[cut:]
            data = _UPGRADE.sub(_NO_UPGRADE, head) + end + rest
        if not data:
            return
        super().data_received(data)
        # Bytes that neither complete a head or a request nor belong to a body, such as those of trailers.
        self._stray_bytes = 0 if self._advanced else self._stray_bytes + len(data)
        if self._stray_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self._in_head:
                self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to wait for the end of a head."""
        super().on_message_begin()
        self._end_timer()
        self._in_head = True
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of a head."""
        if self._in_head:  # nobody reads trailers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Note that a head has come."""
        self._end_timer()
        self._in_head, self._advanced = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take some bytes of a body."""
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request has come."""
        self._end_timer()
        self._in_head = self._advanced = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End a connection whose body nobody will read, but not at once."""
        super().on_response_complete()
        self._idle_since = time.monotonic()
        if self.cycle.response_complete and self.cycle.more_body:
            # It was answered before its body had come, which nobody reads. The client has some time to end it: if the
            # connection were closed at once, many a client would see that in place of the answer.
            self._end_timer()
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def pause_writing(self) -> None:
        """Begin to watch a client that takes its answer slowly."""
        super().pause_writing()
        self._unread_since = time.monotonic()
        self._watch_unread()
        _drop_oldest_unread(one for one in self.connections if isinstance(one, Connection))

    def resume_writing(self) -> None:
        """Note that the client has taken its answer."""
        self._end_unread_timer()
        super().resume_writing()

    @property
    def unread(self) -> tuple[float, int]:
        """Since when the client takes too little of its answers, and the bytes that wait for it."""
        waits = self._unread_since < float("inf") and self.transport is not None
        return self._unread_since, self.transport.get_write_buffer_size() if waits else 0

    def drop(self) -> None:
        """End the connection at once, and forget what waits to be sent."""
        self.transport.abort()

    def _watch_unread(self) -> None:
        before = self.transport.get_write_buffer_size()
        self._end_unread_timer(keep_since=True)
        self._unread_timer = self.loop.call_later(UNREAD_TIMEOUT_S, self._check_unread, before)

    def _check_unread(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < LEAST_READ_BYTES:
            self.drop()
        else:
            self._watch_unread()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_unread_timer(self, *, keep_since: bool = False) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        if not keep_since:
            self._unread_since = float("inf")


def _drop_oldest_unread(connections: Iterable[Connection]) -> None:
    """Make room if clients take too little of their answers."""
    waiting = sorted(((*one.unread, one) for one in connections), key=lambda entry: entry[0])
    held = sum(size for _, size, _ in waiting)
    for _, size, one in waiting:
        if held <= MAX_UNREAD_BYTES:
            return
        one.drop()
        held -= size
