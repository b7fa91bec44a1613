"""The requests of one call. No input or output happens here: the sync and the async client only carry the messages."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from onetrunk.client.answer import Answer, TokenizedText
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.readers import reader_of
from onetrunk.client.retry import Deadline, RetryPolicy, classify_error
from onetrunk.client.rows import Batch, Rows, plan_batches
from onetrunk.client.wire import (
    UnexpectedResponse,
    request_message,
    response_arrays,
    task_scores,
    token_counts,
    token_words,
    truncated_rows,
)
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import TOKEN_COUNT, TOKEN_WORDS, TRUNCATED

# The client keeps the deadline itself. gRPC gets a later one, and a request that nobody waits for is left to end by
# itself. If gRPC knew the deadline, it would cancel the request, and Triton 24.10 often dies of a cancelled one:
# a segmentation fault, triton-inference-server/server#7368 and #8034.
ABANDONED_S = 60.0

# How often to look whether requests that other calls have abandoned are done.
SATURATED_POLL_S = 0.02


class StaleCatalogue(Exception):  # noqa: N818 - a state: caught by the client, which reads the catalogue again
    """The catalogue does not fit the server. ``error`` is to be raised if a fresh catalogue does not fit either."""

    def __init__(self, error: OneTrunkError) -> None:
        super().__init__(str(error))
        self.error = error


class RequestTracker:
    """Counts the requests of all calls of one client. Requests are futures of gRPC or tasks of asyncio.

    A call that ends early abandons its requests (`ABANDONED_S` says why). A caller that runs into its deadline again
    and again must not pile them up on a server that is too slow already, so the client's next call sends nothing while
    the tracker is `saturated`.

    Attributes:
        unfinished: The requests that are not done.
    """

    def __init__(self, max_abandoned: int) -> None:
        self.unfinished: set[Any] = set()
        self._abandoned: set[Any] = set()
        self._max_abandoned = max_abandoned

    def add(self, request: Any) -> None:
        """Count a request until it is done."""
        self.unfinished.add(request)
        request.add_done_callback(self.unfinished.discard)

    def abandon(self, requests: Iterable[Any]) -> None:
        """Count the requests that a call leaves behind, until they are done."""
        for request in requests:
            self._abandoned.add(request)
            request.add_done_callback(self._abandoned.discard)  # at once, if it is done by now

    def saturated(self) -> bool:
        """Return whether too many abandoned requests are not done."""
        return len(self._abandoned) >= self._max_abandoned


class Scheduler:
    """Decides what to send now, what to send again, and when to give up.

    A client sends everything that `next_requests` yields, waits at most `wait_s` for the next response, reports it to
    `on_response` or `on_error`, and repeats this until the call is `done`.
    """

    def __init__(
        self,
        rows: Rows,
        tasks: Sequence[str] | None,
        catalogue: Catalogue,
        *,
        url: str,
        max_in_flight: int,
        retry_policy: RetryPolicy,
        deadline: Deadline,
        tracker: RequestTracker,
    ) -> None:
        """Plan the requests.

        Args:
            rows: The input.
            tasks: The names of the tasks; None asks every task that fits.
            catalogue: The tasks and limits of the server.
            url: The server, for messages.
            max_in_flight: The most requests of this call at a time.
            retry_policy: When to send a request again.
            deadline: The end of the call.
            tracker: Counts the requests of all calls.

        Raises:
            UnknownTask: A task is not in the catalogue.
            BadInput: Rows and tasks do not fit.
        """
        self._rows = rows
        # Only texts have counts: who sends token ids has counted them.
        self._counts_tokens = rows.reports_truncation and catalogue.counts_tokens
        self._url = url
        self._max_in_flight = max_in_flight
        self._retry_policy = retry_policy
        self._deadline = deadline
        self._tracker = tracker
        sizes = rows.sizes
        self._ready = deque(plan_batches(rows.groups(catalogue, tasks), sizes, max_rows=catalogue.max_batch_size))
        self._waiting: list[tuple[float, int, Batch]] = []  # heap: when to send again, tie-break, batch
        self._tie_breaks = itertools.count()
        self._in_flight: set[Batch] = set()
        self._tries: Counter[Batch] = Counter()
        self._first_sent: dict[Batch, float] = {}
        self._answers: list[Answer | None] = [None] * len(sizes)

    @property
    def done(self) -> bool:
        """Whether every row has its answer."""
        return not (self._ready or self._waiting or self._in_flight)

    def next_requests(self) -> Iterator[tuple[Batch, Any, float]]:
        """Yield the batch, its request, and the time-out for gRPC in seconds, for all that may be sent now.

        Raises:
            DeadlineExceeded: The time of the call is over.
        """
        now = self._deadline.clock()
        while self._waiting and self._waiting[0][0] <= now:
            self._ready.append(heapq.heappop(self._waiting)[2])
        while self._ready and len(self._in_flight) < self._max_in_flight and not self._tracker.saturated():
            timeout_s = self._deadline.left_s() + ABANDONED_S
            batch = self._ready.popleft()
            self._in_flight.add(batch)
            self._first_sent.setdefault(batch, now)
            yield batch, self._request(batch), timeout_s

    def wait_s(self) -> float:
        """Return the longest time to wait for a response before calling `next_requests` again.

        Raises:
            DeadlineExceeded: The time of the call is over.
        """
        left = self._deadline.left_s()
        if self._ready and self._tracker.saturated():
            return min(left, SATURATED_POLL_S)
        if self._waiting and len(self._in_flight) < self._max_in_flight:
            return min(left, max(0.0, self._waiting[0][0] - self._deadline.clock()))
        return left

    def on_response(self, batch: Batch, response: Any) -> None:
        """Take the ``ModelInferResponse`` of a batch.

        Raises:
            StaleCatalogue: It does not fit the catalogue.
            ServerError: It cannot be read.
        """
        self._in_flight.remove(batch)
        ms = (self._deadline.clock() - self._first_sent[batch]) * 1000
        rows = len(batch.rows)
        try:
            arrays = response_arrays(response)
            scores = {name: array.tolist() for name, array in task_scores(arrays, batch.tasks, rows).items()}
            words = token_words(arrays, rows) if _needs_words(batch) else None
            truncated = truncated_rows(arrays, rows) if self._rows.reports_truncation else [False] * rows
            tokens = token_counts(arrays, rows) if self._counts_tokens else [None] * rows
        except UnexpectedResponse as error:
            raise StaleCatalogue(error) from None
        readers = [(task, reader) for task in batch.tasks if (reader := reader_of(task))]
        for at, row in enumerate(batch.rows):
            text = TokenizedText(self._rows.text(row), truncated[at], words[at]) if words is not None else None
            predictions = {task.name: reader.read(task, scores[task.name][at], text) for task, reader in readers}
            self._answers[row] = Answer(predictions, truncated[at], ms, tokens[at])

    def on_error(self, batch: Batch, error: Any) -> None:
        """Take the ``grpc.RpcError`` of a batch, and let it wait if it may be sent again.

        Raises:
            StaleCatalogue: The server has other tasks or limits than the catalogue.
            OneTrunkError: The failure is final.
        """
        self._in_flight.remove(batch)
        self._tries[batch] += 1
        failure = classify_error(error, url=self._url, timeout_s=self._deadline.timeout_s, rows=batch.rows)
        if failure.stale_catalogue:
            raise StaleCatalogue(failure.error)
        pause = self._retry_policy.pause_s(failure, self._tries[batch], self._deadline)
        heapq.heappush(self._waiting, (self._deadline.clock() + pause, next(self._tie_breaks), batch))

    def answers(self) -> list[Answer]:
        """Return the answers in the caller's order, once the call is `done`."""
        answers = [answer for answer in self._answers if answer is not None]
        assert len(answers) == len(self._answers)  # plan_batches puts every row into exactly one batch
        return answers

    def _request(self, batch: Batch) -> Any:
        outputs = [task.name for task in batch.tasks]
        if self._rows.reports_truncation:
            outputs.append(TRUNCATED)
        if self._counts_tokens:
            outputs.append(TOKEN_COUNT)
        if _needs_words(batch):
            outputs.append(TOKEN_WORDS)
        return request_message(self._rows.model, self._rows.inputs(batch.rows), outputs)


def _needs_words(batch: Batch) -> bool:
    return any(reader.needs_words for task in batch.tasks if (reader := reader_of(task)))
