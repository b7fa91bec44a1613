"""The client for ``asyncio`` code; everything but the transport is shared with `onetrunk.client.client.Client`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.flight import Flight, Outdated
from onetrunk.client.plan import Batch
from onetrunk.client.retry import Deadline
from onetrunk.client.rows import Rows, TextRows, TokenRows
from onetrunk.client.session import CATALOGUE_MODEL, CHANNEL_OPTIONS, CLOSE_GRACE_S, Session, Settings
from onetrunk.protocol.ensemble_info import TaskInfo


class AsyncClient:
    """`Client` with ``await``. Belongs to the event loop in which it is first used.

    A call that is cancelled stops waiting at once; what it has sent already is left to land unread.

    Example:
        >>> async with AsyncClient() as client:  # doctest: +SKIP
        ...     answers = await client.predict(["One text.", "Another one."], tasks=["sst2"])
    """

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        timeout_s: float = 30.0,
        max_in_flight: int = 4,
        retries: int = 5,
    ) -> None:
        """Arguments and errors as for `Client`."""
        self._session = Session(Settings(url, timeout_s, max_in_flight, retries))
        self._channel: Any = None
        self._stub: Any = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call that still waits, gives its requests some seconds to come back, and hangs up."""
        self._session.closed = True
        if self._session.traffic.on_their_way:
            await asyncio.wait(self._session.traffic.on_their_way, timeout=CLOSE_GRACE_S)
        if self._channel is not None:
            await self._channel.close()

    async def tasks(self) -> Mapping[str, TaskInfo]:
        """As `Client.tasks`."""
        return (await self.catalogue()).tasks

    async def catalogue(self) -> Catalogue:
        """As `Client.catalogue`."""
        return await self._catalogue(self._session.deadline(None))

    async def predict(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str | None] | None = None,
        tasks: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """As `Client.predict`."""
        return await self._answer(TextRows.check(texts, pairs), tasks, timeout_s)

    async def predict_tokens(
        self,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None = None,
        tasks: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """As `Client.predict_tokens`."""
        return await self._answer(TokenRows.check(input_ids, token_type_ids), tasks, timeout_s)

    async def _answer(self, rows: Rows, tasks: Sequence[str] | None, timeout_s: float | None) -> list[Answer]:
        deadline = self._session.deadline(timeout_s)
        try:
            return await self._fly(self._session.flight(rows, tasks, await self._catalogue(deadline), deadline))
        except Outdated:
            pass
        try:
            return await self._fly(self._session.flight(rows, tasks, await self._learn(deadline), deadline))
        except Outdated as outdated:
            raise outdated.error from None

    async def _catalogue(self, deadline: Deadline) -> Catalogue:
        return self._session.remembered() or await self._learn(deadline)

    async def _learn(self, deadline: Deadline) -> Catalogue:
        request = service_pb2.ModelConfigRequest(name=CATALOGUE_MODEL)
        tries = 0
        while True:
            try:
                response = await self._connected().ModelConfig(request, timeout=deadline.left_s())
                return self._session.remember(response)
            except grpc.RpcError as error:
                self._session.check_open()
                tries += 1
                await asyncio.sleep(self._session.pause_s(error, tries, deadline))

    async def _fly(self, flight: Flight) -> list[Answer]:
        flying: dict[asyncio.Task[Any], Batch] = {}
        try:
            while not flight.done:
                self._session.check_open()
                for batch, request, timeout_s in flight.departures():
                    flying[self._start(request, timeout_s)] = batch
                if not flying:  # all that is left waits to be sent
                    await asyncio.sleep(flight.wait_s())
                    continue
                landed, _ = await asyncio.wait(flying, timeout=flight.wait_s(), return_when=asyncio.FIRST_COMPLETED)
                self._session.check_open()
                for task in landed:
                    batch = flying.pop(task)
                    try:
                        response = task.result()
                    except grpc.RpcError as error:
                        flight.failed(batch, error)
                    else:
                        flight.landed(batch, response)
        finally:
            self._session.traffic.abandon(flying)
        return flight.answers()

    def _start(self, request: Any, timeout_s: float) -> asyncio.Task[Any]:
        async def infer() -> Any:
            return await self._connected().ModelInfer(request, timeout=timeout_s)

        # A task of its own: if the caller is cancelled, it is not.
        task = asyncio.create_task(infer())
        self._session.traffic.sent(task)
        task.add_done_callback(_mark_as_seen)
        return task

    def _connected(self) -> Any:
        """The stub. The channel is opened here, since it binds itself to the running event loop."""
        if self._stub is None:
            self._channel = grpc.aio.insecure_channel(self._session.settings.url, options=CHANNEL_OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._stub


def _mark_as_seen(task: asyncio.Task[Any]) -> None:
    """Takes the error of a request that nobody may be waiting for, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()
