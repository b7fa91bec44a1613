"""The client for ``asyncio``. It shares everything but the transport with `onetrunk.client.client.Client`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.core import CATALOGUE_MODEL, CLOSE_GRACE_S, ClientCore, Settings
from onetrunk.client.replicas import Replicas
from onetrunk.client.retry import Deadline
from onetrunk.client.rows import Batch, Rows, TextRows, TokenRows, check_task_names
from onetrunk.client.scheduler import AnswerScheduler, LongText, Scheduler, StaleCatalogue
from onetrunk.client.tracing import trace_headers
from onetrunk.client.windows import Allow, WindowRounds, allow_any
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.tls import Tls

T = TypeVar("T")


class AsyncClient:
    """`Client` with ``await``. It connects anew in every event loop, so that it serves a second `asyncio.run` too.

    A call that is cancelled stops waiting at once. The requests that it has sent are left to finish unread.

    Example:
        >>> async with AsyncClient() as client:  # doctest: +SKIP
        ...     answers = await client.predict(["One text.", "Another one."], tasks=["sst2"])
    """

    def __init__(
        self,
        url: str | Sequence[str] = "127.0.0.1:8001",
        *,
        timeout_s: float = 30.0,
        max_in_flight: int = 4,
        retries: int = 5,
        tls: Tls | None = None,
        api_key: str | None = None,
    ) -> None:
        """Prepare the connection. See `Client` for arguments and errors."""
        self._core = ClientCore(Settings(url, timeout_s, max_in_flight, retries, tls, api_key))
        # A channel is of use only to the loop in which it was opened.
        self._replicas: WeakKeyDictionary[asyncio.AbstractEventLoop, Replicas] = WeakKeyDictionary()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every call that still waits, give its requests some seconds to finish, and close the connection."""
        self._core.closed = True
        if self._core.tracker.unfinished:
            await asyncio.wait(self._core.tracker.unfinished, timeout=CLOSE_GRACE_S)
        if (replicas := self._replicas.pop(asyncio.get_running_loop(), None)) is not None:
            for replica in replicas.all:
                await replica.channel.close()

    async def tasks(self) -> Mapping[str, TaskInfo]:
        """See `Client.tasks`."""
        return (await self.catalogue()).tasks

    async def catalogue(self, *, fresh: bool = False) -> Catalogue:
        """See `Client.catalogue`."""
        deadline = self._core.deadline(None)
        return await (self._read_catalogue(deadline) if fresh else self._catalogue(deadline))

    async def predict(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str | None] | None = None,
        tasks: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """Ask heads about texts. See `Client.predict` for errors.

        Args:
            texts: One text, or a list of any length.
            pairs: The second texts of pairs: one for one text, or one or None for each text of a list.
            tasks: Names of tasks; None asks every task that fits.
            timeout_s: The time of this call in place of the client's.
        """
        return await self._answer(TextRows.check(texts, pairs), tasks, timeout_s)

    async def predict_tokens(
        self,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None = None,
        tasks: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """Ask heads about rows of token ids. See `Client.predict_tokens` for errors.

        Args:
            input_ids: Rows of token ids, special tokens included, of any length up to the server's longest.
            token_type_ids: 0 for tokens of the first text and 1 for tokens of the second; None for all 0.
            tasks: Names of tasks; None asks every task.
            timeout_s: The time of this call in place of the client's.
        """
        return await self._answer(TokenRows.check(input_ids, token_type_ids), tasks, timeout_s)

    async def predict_beginnings(
        self, texts: Sequence[str], pairs: Sequence[str | None], tasks: Sequence[str] | None
    ) -> tuple[list[Answer], list[LongText]]:
        """Do the first half of `predict`, which reads no more of a text than fits into one request.

        Args:
            texts: The texts.
            pairs: The second text of each, or None.
            tasks: Names of tasks; None asks every task that fits.

        Returns:
            The answers, and the texts of which `predict` would read more: see `read_windows`.

        Raises:
            OneTrunkError: Any error of `Client.predict`.
        """
        deadline, rows, names = self._core.deadline(None), TextRows.check(texts, pairs), check_task_names(tasks)
        first = await self._with_catalogue(deadline, lambda found: self._read_first(rows, names, found, deadline))
        return first.answers(), first.long_texts

    async def read_windows(self, long_texts: Sequence[LongText], allow: Allow = allow_any) -> Mapping[int, Answer]:
        """Do the second half of `predict`: read long texts to their end, window by window.

        Args:
            long_texts: Texts that `predict_beginnings` returned.
            allow: Called before the windows are asked about.

        Returns:
            Row -> answer.

        Raises:
            StaleCatalogue: The server has other tasks by now: ask it again about these texts.
            OneTrunkError: Any other error of `Client.predict`.
            Exception: What ``allow`` raises.
        """
        deadline = self._core.deadline(None)
        return await self._read_windows(long_texts, await self._catalogue(deadline), deadline, allow)

    async def _answer(self, rows: Rows, tasks: Sequence[str] | None, timeout_s: float | None) -> list[Answer]:
        deadline = self._core.deadline(timeout_s)
        names = check_task_names(tasks)

        async def ask(catalogue: Catalogue) -> list[Answer]:
            first = await self._read_first(rows, names, catalogue, deadline)
            answers = first.answers()
            if first.long_texts:
                for row, answer in (await self._read_windows(first.long_texts, catalogue, deadline)).items():
                    answers[row] = answer
            return answers

        return await self._with_catalogue(deadline, ask)

    async def _with_catalogue(self, deadline: Deadline, ask: Callable[[Catalogue], Awaitable[T]]) -> T:
        """Ask with the catalogue that is known, and once more with a fresh one if that does not fit the server."""
        try:
            return await ask(await self._catalogue(deadline))
        except StaleCatalogue:
            pass
        try:
            return await ask(await self._read_catalogue(deadline))
        except StaleCatalogue as stale:
            raise stale.error from None

    async def _read_first(
        self, rows: Rows, tasks: Sequence[str] | None, catalogue: Catalogue, deadline: Deadline
    ) -> AnswerScheduler:
        scheduler = self._core.schedule(rows, tasks, catalogue, deadline)
        await self._run(scheduler)
        return scheduler

    async def _read_windows(
        self,
        long_texts: Sequence[LongText],
        catalogue: Catalogue,
        deadline: Deadline,
        allow: Allow = allow_any,
    ) -> Mapping[int, Answer]:
        windows = WindowRounds(long_texts, catalogue, self._core.terms(deadline), allow)
        for scheduler in windows.rounds():
            await self._run(scheduler)
        return windows.answers()

    async def _catalogue(self, deadline: Deadline) -> Catalogue:
        return self._core.remembered() or await self._read_catalogue(deadline)

    async def _read_catalogue(self, deadline: Deadline) -> Catalogue:
        request = service_pb2.ModelConfigRequest(name=CATALOGUE_MODEL)
        tries = 0
        while True:
            try:
                return self._core.remember(
                    await self._send("ModelConfig", request, deadline.left_s(), self._core.settings.metadata)
                )
            except grpc.RpcError as error:
                self._core.check_open()
                tries += 1
                await asyncio.to_thread(self._core.check_tls, error, tries)
                await asyncio.sleep(self._core.pause_s(error, tries, deadline))

    async def _run(self, scheduler: Scheduler) -> None:
        pending: dict[asyncio.Task[Any], Batch] = {}
        try:
            while not scheduler.done:
                self._core.check_open()
                for batch, request, timeout_s in scheduler.next_requests():
                    pending[self._start(request, timeout_s)] = batch
                if not pending:  # everything that is left waits to be sent
                    await asyncio.sleep(scheduler.wait_s())
                    continue
                done, _ = await asyncio.wait(pending, timeout=scheduler.wait_s(), return_when=asyncio.FIRST_COMPLETED)
                self._core.check_open()
                for task in done:
                    batch = pending.pop(task)
                    try:
                        response = task.result()
                    except grpc.RpcError as error:
                        scheduler.on_error(batch, error)
                    else:
                        scheduler.on_response(batch, response)
        finally:
            self._core.tracker.abandon(pending)

    def _start(self, request: Any, timeout_s: float) -> asyncio.Task[Any]:
        metadata = (*self._core.settings.metadata, *trace_headers())
        # A task of its own: if the caller is cancelled, it is not.
        task = asyncio.create_task(self._send("ModelInfer", request, timeout_s, metadata))
        self._core.tracker.add(task)
        task.add_done_callback(_mark_as_seen)
        return task

    async def _send(self, method: str, request: Any, timeout_s: float, metadata: Any) -> Any:
        """Send a request to the server whose turn it is. Channels bind themselves to the event loop that opens them."""
        loop = asyncio.get_running_loop()
        if (replicas := self._replicas.get(loop)) is None:
            replicas = self._replicas[loop] = self._core.open_replicas(grpc.aio)
        replica = replicas.next()
        call = getattr(replica.stub, method)(request, timeout=timeout_s, metadata=metadata)
        try:
            return await call
        finally:
            replicas.note(replica, await call.code() if call.done() else None)


def _mark_as_seen(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a request that nobody may be waiting for, so that asyncio does not complain about it."""
    if not task.cancelled():
        task.exception()
