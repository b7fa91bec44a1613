"""The requests of one call. No input or output happens here: the sync and the async client only carry the messages."""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onetrunk.client.answer import Answer, Reading, TokenizedText
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.readers import reader_of
from onetrunk.client.retry import Deadline, RetryPolicy, classify_error
from onetrunk.client.rows import Batch, Group, Rows, plan_batches
from onetrunk.client.wire import (
    Arrays,
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


@dataclass(frozen=True)
class Terms:
    """On what terms a call sends its requests.

    Attributes:
        url: The server, for messages.
        max_in_flight: The most requests of this call at a time.
        retry_policy: When to send a request again.
        deadline: The end of the call.
        tracker: Counts the requests of all calls.
    """

    url: str
    max_in_flight: int
    retry_policy: RetryPolicy
    deadline: Deadline
    tracker: RequestTracker


class Scheduler(ABC):
    """Decides what to send now, what to send again, and when to give up.

    A client sends everything that `next_requests` yields, waits at most `wait_s` for the next response, reports it to
    `on_response` or `on_error`, and repeats this until the round is `done`.
    """

    def __init__(self, batches: Iterable[Batch], terms: Terms, callers_rows: Sequence[int] | None = None) -> None:
        """Plan the requests.

        Args:
            batches: The rows of each request.
            terms: On what terms they are sent.
            callers_rows: Row -> row in the caller's list; None if they are the same.
        """
        self._terms = terms
        self._callers_rows = callers_rows
        self._ready = deque(batches)
        self._waiting: list[tuple[float, int, Batch]] = []  # heap: when to send again, tie-break, batch
        self._tie_breaks = itertools.count()
        self._in_flight: set[Batch] = set()
        self._tries: Counter[Batch] = Counter()
        self._first_sent: dict[Batch, float] = {}

    @property
    def done(self) -> bool:
        """Whether every row has its answer."""
        return not (self._ready or self._waiting or self._in_flight)

    def next_requests(self) -> Iterator[tuple[Batch, Any, float]]:
        """Yield the batch, its request, and the time-out for gRPC in seconds, for all that may be sent now.

        Raises:
            DeadlineExceeded: The time of the call is over.
        """
        now = self._terms.deadline.clock()
        while self._waiting and self._waiting[0][0] <= now:
            self._ready.append(heapq.heappop(self._waiting)[2])
        while self._ready and len(self._in_flight) < self._terms.max_in_flight and not self._terms.tracker.saturated():
            timeout_s = self._terms.deadline.left_s() + ABANDONED_S
            batch = self._ready.popleft()
            self._in_flight.add(batch)
            self._first_sent.setdefault(batch, now)
            yield batch, self._request(batch), timeout_s

    def wait_s(self) -> float:
        """Return the longest time to wait for a response before calling `next_requests` again.

        Raises:
            DeadlineExceeded: The time of the call is over.
        """
        left = self._terms.deadline.left_s()
        if self._ready and self._terms.tracker.saturated():
            return min(left, SATURATED_POLL_S)
        if self._waiting and len(self._in_flight) < self._terms.max_in_flight:
            return min(left, max(0.0, self._waiting[0][0] - self._terms.deadline.clock()))
        return left

    def on_response(self, batch: Batch, response: Any) -> None:
        """Take the ``ModelInferResponse`` of a batch.

        Raises:
            StaleCatalogue: It does not fit the catalogue.
            ServerError: It cannot be read.
        """
        self._in_flight.remove(batch)
        try:
            self._take(batch, response_arrays(response))
        except UnexpectedResponse as error:
            raise StaleCatalogue(error) from None

    def on_error(self, batch: Batch, error: Any) -> None:
        """Take the ``grpc.RpcError`` of a batch, and let it wait if it may be sent again.

        Raises:
            StaleCatalogue: The server has other tasks or limits than the catalogue.
            OneTrunkError: The failure is final.
        """
        self._in_flight.remove(batch)
        self._tries[batch] += 1
        rows = batch.rows if self._callers_rows is None else [self._callers_rows[row] for row in batch.rows]
        failure = classify_error(error, url=self._terms.url, timeout_s=self._terms.deadline.timeout_s, rows=rows)
        if failure.stale_catalogue:
            raise StaleCatalogue(failure.error)
        pause = self._terms.retry_policy.pause_s(failure, self._tries[batch], self._terms.deadline)
        heapq.heappush(self._waiting, (self._terms.deadline.clock() + pause, next(self._tie_breaks), batch))

    @abstractmethod
    def _request(self, batch: Batch) -> Any:
        """Return the ``ModelInferRequest`` of a batch."""

    @abstractmethod
    def _take(self, batch: Batch, arrays: Arrays) -> None:
        """Take the outputs of a batch. Raises UnexpectedResponse or ServerError."""


@dataclass(frozen=True)
class LongText:
    """A text of which the first request read only the beginning, though some of its tasks read windows.

    Attributes:
        row: The row in the caller's list.
        text: The text, or the first text of its pair.
        pair: The second text; None if it has none.
        first: What the first request read.
        answer: Its answer by that.
    """

    row: int
    text: str
    pair: str | None
    first: Reading
    answer: Answer


class ReadingScheduler(Scheduler):
    """Asks tasks about rows: those of a call, or windows of its long texts."""

    def __init__(
        self,
        rows: Rows,
        groups: Sequence[Group],
        catalogue: Catalogue,
        terms: Terms,
        callers_rows: Sequence[int] | None = None,
    ) -> None:
        """Plan the requests.

        Args:
            rows: The input.
            groups: The tasks of the rows. Every row is in one group.
            catalogue: The tasks and limits of the server.
            terms: On what terms the requests are sent.
            callers_rows: Row -> row in the caller's list; None if they are the same.
        """
        super().__init__(plan_batches(groups, rows.sizes, max_rows=catalogue.max_batch_size), terms, callers_rows)
        self._rows = rows
        # Only texts have counts: who sends token ids has counted them.
        self._counts_tokens = rows.reports_truncation and catalogue.counts_tokens

    @abstractmethod
    def _keep(self, row: int, reading: Reading) -> None:
        """Take what was read of a row."""

    def _request(self, batch: Batch) -> Any:
        outputs = [task.name for task in batch.tasks]
        if self._rows.reports_truncation:
            outputs.append(TRUNCATED)
        if self._counts_tokens:
            outputs.append(TOKEN_COUNT)
        if _needs_words(batch):
            outputs.append(TOKEN_WORDS)
        return request_message(self._rows.model, self._rows.inputs(batch.rows), outputs)

    def _take(self, batch: Batch, arrays: Arrays) -> None:
        rows, answered_s = len(batch.rows), self._terms.deadline.clock()
        scores = task_scores(arrays, batch.tasks, rows)
        words = token_words(arrays, rows) if _needs_words(batch) else None
        truncated = truncated_rows(arrays, rows) if self._rows.reports_truncation else [False] * rows
        tokens = token_counts(arrays, rows) if self._counts_tokens else [None] * rows
        for at, row in enumerate(batch.rows):
            reading = Reading(
                batch.tasks,
                {name: array[at] for name, array in scores.items()},
                words[at] if words is not None else None,
                truncated[at],
                tokens[at],
                self._first_sent[batch],
                answered_s,
            )
            self._keep(row, reading)


class AnswerScheduler(ReadingScheduler):
    """The first round of a call, and the only one unless tasks that read windows were asked about long texts.

    Attributes:
        long_texts: The texts of which there is more to read.
    """

    def __init__(self, rows: Rows, tasks: Sequence[str] | None, catalogue: Catalogue, terms: Terms) -> None:
        """Plan the requests.

        Args:
            rows: The input.
            tasks: The names of the tasks; None asks every task that fits.
            catalogue: The tasks and limits of the server.
            terms: On what terms the requests are sent.

        Raises:
            UnknownTask: A task is not in the catalogue.
            BadInput: Rows and tasks do not fit.
        """
        super().__init__(rows, rows.groups(catalogue, tasks), catalogue, terms)
        self._answers: list[Answer | None] = [None] * len(rows.sizes)
        self.long_texts: list[LongText] = []

    def answers(self) -> list[Answer]:
        """Return the answers in the caller's order, once the round is `done`."""
        answers = [answer for answer in self._answers if answer is not None]
        assert len(answers) == len(self._answers)  # plan_batches puts every row into exactly one batch
        return answers

    def _keep(self, row: int, reading: Reading) -> None:
        text = self._rows.text(row) if reading.words is not None else ""
        tokenized = TokenizedText(text, reading.truncated, reading.words) if reading.words is not None else None
        predictions = {
            task.name: reader.read(task, reading.scores[task.name].tolist(), tokenized)
            for task in reading.tasks
            if (reader := reader_of(task))
        }
        ms = (reading.answered_s - reading.sent_s) * 1000
        answer = self._answers[row] = Answer(predictions, reading.truncated, ms, reading.tokens)
        if reading.truncated and any(task.reads_windows for task in reading.tasks):
            self.long_texts.append(LongText(row, self._rows.text(row), self._rows.pair(row), reading, answer))


def _needs_words(batch: Batch) -> bool:
    return any(reader.needs_words for task in batch.tasks if (reader := reader_of(task)))
