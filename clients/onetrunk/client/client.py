"""The synchronous client. For ``asyncio`` there is `onetrunk.client.aio.AsyncClient`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.core import CATALOGUE_MODEL, CLOSE_GRACE_S, ClientCore, Settings
from onetrunk.client.retry import Deadline
from onetrunk.client.rows import Batch, Rows, TextRows, TokenRows, check_task_names
from onetrunk.client.scheduler import Scheduler, StaleCatalogue
from onetrunk.client.tracing import trace_headers
from onetrunk.client.windows import WindowRounds
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.tls import Tls


class Client:
    """A client of a server that runs a repository of ``build-repo``.

    It holds a gRPC connection to each server: create one client and keep it. Threads may share it.

    Example:
        >>> with Client() as client:  # doctest: +SKIP
        ...     for answer in client.predict(["A gripping film.", "A dull, lifeless film."]):
        ...         print(answer["sst2"].label, answer["sst2"].score)

    It uses the stubs that tritonclient generates and not its ``InferenceServerClient``, whose ``async_infer`` keeps the
    running call in an attribute that two threads would overwrite.
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
        """Prepare the connection, which is opened by the first call.

        Args:
            url: Host and port of the gRPC endpoint, or ``unix:`` and the path of its socket. Several servers are asked
                in turn: a list of addresses, or ``dns:///`` with a name and a port for all that the name resolves to.
            timeout_s: The time of a whole call, however many requests it takes.
            max_in_flight: The most requests of one call at a time. If as many are left over from calls that ended
                early, the next call waits until some of them are done.
            retries: How often one request may be sent again, if that can help, once every server was asked.
            tls: The client's side of TLS; None connects without.
            api_key: The key for a server that asks for one. Without TLS, it can be read on its way.

        Raises:
            BadInput: One of these is out of range.
            TlsError: A file of `tls` cannot be used.
        """
        self._core = ClientCore(Settings(url, timeout_s, max_in_flight, retries, tls, api_key))
        self._replicas = self._core.open_replicas(grpc)
        self._lock = threading.Lock()  # nothing is sent while the client is being closed

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every call that still waits, give its requests some seconds to finish, and close the connection."""
        with self._lock:
            self._core.closed = True
        ends = time.monotonic() + CLOSE_GRACE_S
        while self._core.tracker.unfinished and time.monotonic() < ends:
            time.sleep(0.01)
        for replica in self._replicas.all:
            replica.channel.close()

    def tasks(self) -> Mapping[str, TaskInfo]:
        """Return name -> task, as served. The server is asked again after some seconds.

        Raises:
            NotReady: No server answers, after all retries.
            TlsError: Client and server do not agree on TLS.
            DeadlineExceeded: The call did not finish in its time.
            ServerError: The server failed, or ``build-repo`` did not write its repository.
        """
        return self.catalogue().tasks

    def catalogue(self, *, fresh: bool = False) -> Catalogue:
        """Return the tasks with the server's limits: batch size, buckets, longest row. See `tasks` for the errors.

        Args:
            fresh: Whether the server is asked although it told them some seconds ago.
        """
        deadline = self._core.deadline(None)
        return self._read_catalogue(deadline) if fresh else self._catalogue(deadline)

    def predict(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str | None] | None = None,
        tasks: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """Ask heads about texts. On the server, only the heads of these tasks run.

        Args:
            texts: One text, or a list of any length.
            pairs: The second texts of pairs: one for one text, or one or None for each text of a list.
            tasks: Names of tasks. None asks every task that fits: the tasks on pairs for a row with a pair, and the
                tasks on single texts for any other row. An embedding runs only if it is named.
            timeout_s: The time of this call in place of the client's.

        Returns:
            One answer for each text, in order.

        Raises:
            BadInput: A row cannot be answered. Faults that the client can find are raised before anything is sent.
            UnknownTask: A task is not served.
            NotReady: No server answers, or a model is down, after all retries.
            TlsError: Client and server do not agree on TLS.
            DeadlineExceeded: The whole call did not finish in its time.
            ServerError: The server failed.
        """
        return self._answer(TextRows.check(texts, pairs), tasks, timeout_s)

    def predict_tokens(
        self,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None = None,
        tasks: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """Ask heads about rows of token ids, for callers with a tokenizer of their own.

        Args:
            input_ids: Rows of token ids, special tokens included, of any length up to the server's longest.
            token_type_ids: 0 for tokens of the first text and 1 for tokens of the second; None for all 0.
            tasks: Names of tasks. None asks every task, since ids do not tell a pair from a single text.
            timeout_s: The time of this call in place of the client's.

        Returns:
            One answer for each row, in order. ``truncated`` is never set, since a row that is too long is an error.

        Raises:
            BadInput: A row cannot be answered. Faults that the client can find are raised before anything is sent.
            UnknownTask: A task is not served.
            NotReady: No server answers, or a model is down, after all retries.
            TlsError: Client and server do not agree on TLS.
            DeadlineExceeded: The whole call did not finish in its time.
            ServerError: The server failed.
        """
        return self._answer(TokenRows.check(input_ids, token_type_ids), tasks, timeout_s)

    def _answer(self, rows: Rows, tasks: Sequence[str] | None, timeout_s: float | None) -> list[Answer]:
        deadline = self._core.deadline(timeout_s)
        names = check_task_names(tasks)
        try:
            return self._ask(rows, names, self._catalogue(deadline), deadline)
        except StaleCatalogue:
            pass
        try:
            return self._ask(rows, names, self._read_catalogue(deadline), deadline)
        except StaleCatalogue as stale:
            raise stale.error from None

    def _ask(self, rows: Rows, tasks: Sequence[str] | None, catalogue: Catalogue, deadline: Deadline) -> list[Answer]:
        first = self._core.schedule(rows, tasks, catalogue, deadline)
        self._run(first)
        answers = first.answers()
        if first.long_texts:
            windows = WindowRounds(first.long_texts, catalogue, self._core.terms(deadline))
            for scheduler in windows.rounds():
                self._run(scheduler)
            for row, answer in windows.answers().items():
                answers[row] = answer
        return answers

    def _catalogue(self, deadline: Deadline) -> Catalogue:
        return self._core.remembered() or self._read_catalogue(deadline)

    def _read_catalogue(self, deadline: Deadline) -> Catalogue:
        request = service_pb2.ModelConfigRequest(name=CATALOGUE_MODEL)
        tries = 0
        while True:
            try:
                return self._core.remember(self._start("ModelConfig", request, deadline.left_s()).result())
            except grpc.RpcError as error:
                self._core.check_open()
                tries += 1
                self._core.check_tls(error, tries)
                time.sleep(self._core.pause_s(error, tries, deadline))

    def _run(self, scheduler: Scheduler) -> None:
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        pending: dict[Any, Batch] = {}
        try:
            while not scheduler.done:
                self._core.check_open()
                for batch, request, timeout_s in scheduler.next_requests():
                    future = self._start("ModelInfer", request, timeout_s)
                    pending[future] = batch
                    future.add_done_callback(finished.put)  # on a thread of gRPC; this thread does the rest
                try:
                    future = finished.get(timeout=scheduler.wait_s())
                except queue.Empty:
                    continue
                self._core.check_open()
                batch = pending.pop(future)
                try:
                    response = future.result()
                except grpc.RpcError as error:
                    scheduler.on_error(batch, error)
                else:
                    scheduler.on_response(batch, response)
        finally:
            self._core.tracker.abandon(pending)

    def _start(self, method: str, request: Any, timeout_s: float) -> Any:
        with self._lock:
            self._core.check_open()
            metadata = (*self._core.settings.metadata, *trace_headers())
            replica = self._replicas.next()
            future = getattr(replica.stub, method).future(request, timeout=timeout_s, metadata=metadata)
            future.add_done_callback(lambda done: self._replicas.note(replica, done.code()))
            self._core.tracker.add(future)
        return future
