"""Decides which requests are passed on now, which wait, and which are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from onetrunk.protocol.api_key import KEY_WANTED
from onetrunk.protocol.errors import counted
from onetrunk.serving.front.settings import Limits


class RefusedError(Exception):
    """A request that is not passed on.

    Attributes:
        status: The HTTP status: 400 for a request that cannot be answered, 401 for one without a key, 413 for one that
            is too large, 429 if there are too many.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnauthorizedError(RefusedError):
    """A request without a key that the front knows. The message does not say whether it had one."""

    def __init__(self) -> None:
        super().__init__(401, f"{KEY_WANTED}: send one that it knows, as the header 'Authorization: Bearer KEY'")


class Admission:
    """Counts requests and their bytes, from the first byte that is read until Triton has answered.

    A request whose client has gone is counted until Triton has answered it, since it costs Triton the same.

    Attributes:
        in_flight: The requests that Triton works on.
        waiting: The requests that wait for their turn.
        pending_bytes: The size of all requests that are being read, wait or are in flight.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.max_in_flight)
        self.in_flight = 0
        self.waiting = 0
        self.pending_bytes = 0

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count the bytes of a request while the block runs.

        Args:
            size: The size of the request in bytes.

        Raises:
            RefusedError: The requests of all clients together are too large.
        """
        if self.pending_bytes + size > self._limits.max_pending_bytes:
            raise RefusedError(
                429,
                f"too many requests at a time: they would be {self.pending_bytes + size:,} bytes together, and "
                f"{self._limits.max_pending_bytes:,} are allowed; send it again later",
            )
        self.pending_bytes += size
        try:
            yield
        finally:
            self.pending_bytes -= size

    async def turn(self, size: int) -> AbstractContextManager[None]:
        """Wait for a turn, which lasts until the block ends that is opened with what is returned.

        Args:
            size: The size of the request in bytes.

        Raises:
            RefusedError: Too many requests wait already, or they are too large together.
        """
        if self._turns.locked() and self.waiting >= self._limits.max_waiting:
            raise RefusedError(
                429,
                f"too many requests at a time: {counted(self.in_flight, 'is', 'are')} in flight and "
                f"{counted(self.waiting, 'waits', 'wait')}; send it again later",
            )
        with self.holding(size):
            self.waiting += 1
            try:
                await self._turns.acquire()
            finally:
                self.waiting -= 1
        return self._turn(size)

    @contextmanager
    def _turn(self, size: int) -> Iterator[None]:
        self.in_flight += 1
        self.pending_bytes += size
        try:
            yield
        finally:
            self.in_flight -= 1
            self.pending_bytes -= size
            self._turns.release()
