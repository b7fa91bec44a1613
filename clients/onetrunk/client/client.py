"""The client for ordinary code. ``asyncio`` code takes `onetrunk.client.aio.AsyncClient`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.flight import Flight, Outdated
from onetrunk.client.plan import Batch
from onetrunk.client.retry import Deadline
from onetrunk.client.rows import Rows, TextRows, TokenRows
from onetrunk.client.session import CATALOGUE_MODEL, CHANNEL_OPTIONS, CLOSE_GRACE_S, Session, Settings
from onetrunk.protocol.ensemble_info import TaskInfo


class Client:
    """Asks a server that runs a repository of ``build-repo``.

    Holds one gRPC connection: make one client and keep it, threads may share it.

    Example:
        >>> with Client() as client:  # doctest: +SKIP
        ...     for answer in client.predict(["A gripping film.", "A dull, lifeless film."]):
        ...         print(answer["sst2"].label, answer["sst2"].score)

    It speaks through the stubs that tritonclient generates, not through its ``InferenceServerClient``, whose
    ``async_infer`` keeps the running call in an attribute that two threads would overwrite.
    """

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        timeout_s: float = 30.0,
        max_in_flight: int = 4,
        retries: int = 5,
    ) -> None:
        """Connects when it is first used.

        Args:
            url: host and port of Triton's gRPC endpoint.
            timeout_s: the time of a whole call, however many requests it takes.
            max_in_flight: most requests of one call that are on their way at once. When as many are left over
                from calls that ended early, the next call waits for some of them to land.
            retries: how often one request may be sent again, where that can help.

        Raises:
            BadInput: one of these is out of range.
        """
        self._session = Session(Settings(url, timeout_s, max_in_flight, retries))
        self._channel = grpc.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._lock = threading.Lock()  # nothing is sent while the client is being closed

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every call that still waits, gives its requests some seconds to come back, and hangs up."""
        with self._lock:
            self._session.closed = True
        ends = time.monotonic() + CLOSE_GRACE_S
        while self._session.traffic.on_their_way and time.monotonic() < ends:
            time.sleep(0.01)
        self._channel.close()

    def tasks(self) -> Mapping[str, TaskInfo]:
        """Name -> task, as served; remembered for some seconds.

        Raises:
            NotReady, DeadlineExceeded, ServerError: as `predict`.
        """
        return self.catalogue().tasks

    def catalogue(self) -> Catalogue:
        """The tasks with the server's limits: batch size, buckets, longest row. Errors as for `tasks`."""
        return self._catalogue(self._session.deadline(None))

    def predict(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str | None] | None = None,
        tasks: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """Asks heads about texts. Only the heads of the tasks asked for run on the server.

        Args:
            texts: one text, or a list of any length.
            pairs: the second texts of pairs: one for one text; for a list, one or None for each text.
            tasks: names; None asks every task that fits: of a row with a pair the tasks on pairs, of any other
                the tasks on single texts.
            timeout_s: for this call, in place of the client's.

        Returns:
            One answer a text, in order.

        Raises:
            BadInput: a row cannot be answered. What the client can see itself it tells before anything is sent.
            UnknownTask: a task is not served.
            NotReady: no server answers, or a model is down, after all retries.
            DeadlineExceeded: the whole call was not done in its time.
            ServerError: the server failed.
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
        """Asks heads about rows of token ids, special tokens included, for callers with a tokenizer of their own.

        Args:
            input_ids: rows of any lengths up to the server's longest.
            token_type_ids: 0 for the first text, 1 for the second; None for all 0.
            tasks: names; None asks every task, since ids do not tell a pair from a single text.
            timeout_s: for this call, in place of the client's.

        Returns:
            The answers in order; ``truncated`` is never set, as a row too long is an error here.

        Raises:
            BadInput, UnknownTask, NotReady, DeadlineExceeded, ServerError: as `predict`.
        """
        return self._answer(TokenRows.check(input_ids, token_type_ids), tasks, timeout_s)

    def _answer(self, rows: Rows, tasks: Sequence[str] | None, timeout_s: float | None) -> list[Answer]:
        deadline = self._session.deadline(timeout_s)
        try:
            return self._fly(self._session.flight(rows, tasks, self._catalogue(deadline), deadline))
        except Outdated:
            pass
        try:
            return self._fly(self._session.flight(rows, tasks, self._learn(deadline), deadline))
        except Outdated as outdated:
            raise outdated.error from None

    def _catalogue(self, deadline: Deadline) -> Catalogue:
        return self._session.remembered() or self._learn(deadline)

    def _learn(self, deadline: Deadline) -> Catalogue:
        request = service_pb2.ModelConfigRequest(name=CATALOGUE_MODEL)
        tries = 0
        while True:
            try:
                return self._session.remember(self._start(self._stub.ModelConfig, request, deadline.left_s()).result())
            except grpc.RpcError as error:
                self._session.check_open()
                tries += 1
                time.sleep(self._session.pause_s(error, tries, deadline))

    def _fly(self, flight: Flight) -> list[Answer]:
        landings: queue.SimpleQueue[Any] = queue.SimpleQueue()
        flying: dict[Any, Batch] = {}
        try:
            while not flight.done:
                self._session.check_open()
                for batch, request, timeout_s in flight.departures():
                    future = self._start(self._stub.ModelInfer, request, timeout_s)
                    flying[future] = batch
                    future.add_done_callback(landings.put)  # on a thread of gRPC: this one does the rest
                try:
                    future = landings.get(timeout=flight.wait_s())
                except queue.Empty:
                    continue
                self._session.check_open()
                batch = flying.pop(future)
                try:
                    response = future.result()
                except grpc.RpcError as error:
                    flight.failed(batch, error)
                else:
                    flight.landed(batch, response)
        finally:
            self._session.traffic.abandon(flying)
        return flight.answers()

    def _start(self, method: Any, request: Any, timeout_s: float) -> Any:
        with self._lock:
            self._session.check_open()
            future = method.future(request, timeout=timeout_s)
            self._session.traffic.sent(future)
        return future
