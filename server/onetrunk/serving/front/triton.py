"""The front's connection to Triton."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import grpc.aio

from onetrunk.admin import CHANNEL_OPTIONS
from onetrunk.serving.front.parts import TRITON, part
from onetrunk.serving.front.settings import TritonAddress

T = TypeVar("T")


class TritonDownError(Exception):
    """Triton does not run at the moment."""

    def __init__(self) -> None:
        super().__init__("the model server is not running at the moment; it is being started: send it again later")


@dataclass(frozen=True)
class HttpAnswer:
    """What Triton answered over HTTP.

    Attributes:
        status: The status.
        headers: The headers.
        body: The body, compressed as Triton sent it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


# How long calls may go on that were under way to a Triton that is left.
_MOVE_GRACE_S = 60.0


class Triton:
    """Triton, as the front reaches it. Its address changes when it is restarted.

    No call to it may be cancelled, and none has a deadline, because Triton 24.10 dies of cancelled requests
    (triton-inference-server/server#7368). So whoever may stop waiting calls through `uncancelled`.
    """

    def __init__(self, address: TritonAddress | None = None) -> None:
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Any] = {}
        self._http: aiohttp.ClientSession | None = None
        self._metrics: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._address = address

    @property
    def address(self) -> TritonAddress | None:
        """Where it listens, or None while there is none."""
        return self._address

    def move(self, address: TritonAddress | None) -> None:
        """Use another Triton from now on; None if there is none for a while.

        Calls over gRPC that are in progress may end; those over HTTP end with `TritonDownError`.
        """
        old = [self._channel, self._http, self._metrics]
        self._address, self._calls = address, {}
        self._channel = self._http = self._metrics = None
        self._keep(self._close(old, _MOVE_GRACE_S))

    async def call(self, method: str, request: bytes, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
        """Send one gRPC call and wait for the answer.

        Args:
            method: The method's full name.
            request: The serialized message.
            metadata: The headers to pass on.

        Raises:
            TritonDownError: Triton does not run.
            grpc.aio.AioRpcError: Triton's own error.
        """
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = self._connected().unary_unary(method)
        with part(TRITON):
            answer: bytes = await call(request, metadata=tuple(metadata))
        return answer

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        """Send one request over HTTP and wait for the answer.

        Args:
            method: The method.
            path: The path, which was checked.
            headers: The headers to pass on.
            body: The body, or nothing.

        Raises:
            TritonDownError: Triton does not run, or went away.
        """
        session = self._session()
        with part(TRITON):
            return await self._ask(session, method, path, headers, body)

    async def metrics(self) -> bytes:
        """Return Triton's metrics in Prometheus's text format.

        Raises:
            TritonDownError: Triton does not run.
        """
        if self._metrics is None:
            self._metrics = _unix_session(str(self._known().metrics_socket))
        return (await self._ask(self._metrics, "GET", "/metrics", {}, b"")).body

    async def close(self, grace_s: float) -> None:
        """Wait until the calls in progress are answered, at most so many seconds, and close the connections."""
        began = time.monotonic()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        left_s = max(0.0, grace_s - (time.monotonic() - began))
        await self._close([self._channel, self._http, self._metrics], left_s)

    def _known(self) -> TritonAddress:
        if self._address is None:
            raise TritonDownError
        return self._address

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._known().grpc, options=CHANNEL_OPTIONS)
        return self._channel

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = _unix_session(str(self._known().http_socket))
        return self._http

    @staticmethod
    async def _ask(
        session: aiohttp.ClientSession, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> HttpAnswer:
        try:
            async with session.request(method, f"http://triton{path}", headers=headers, data=body or None) as response:
                return HttpAnswer(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise TritonDownError from error

    async def uncancelled(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for some work. If the waiting ends early, the work goes on."""
        return await asyncio.shield(self._keep(work))

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something to its end, whether or not somebody waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits any more

    async def _close(self, connections: Sequence[Any], grace_s: float) -> None:
        for connection in connections:
            if isinstance(connection, aiohttp.ClientSession):
                await connection.close()
            elif connection is not None:
                # With a grace, since calls may be in progress.
                await connection.close(grace=grace_s)


def _unix_session(socket: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=socket, limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )
