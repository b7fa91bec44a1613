"""One call's requests on their way. No input or output in here: sync and async clients only carry the messages."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.fault import read_fault
from onetrunk.client.kinds import RowRead
from onetrunk.client.plan import Batch, plan_batches
from onetrunk.client.retry import Backoff, Deadline
from onetrunk.client.rows import Rows
from onetrunk.client.traffic import Traffic
from onetrunk.client.wire import (
    Misfit,
    batch_readers,
    batch_scores,
    batch_truncated,
    batch_words,
    request_message,
    response_arrays,
)
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import TOKEN_WORDS, TRUNCATED

# The deadline is kept on this side: gRPC is told a later one, and a request that nobody waits for any
# more is left to end by itself. Told the deadline, gRPC would cancel the request, and Triton 24.10
# often dies of a cancelled one: a segmentation fault, triton-inference-server/server#7368 and #8034.
ABANDONED_S = 60.0

# How often to look whether requests that other calls have left behind have landed.
CROWDED_POLL_S = 0.02


class Outdated(Exception):  # noqa: N818 - a state: caught by the client, which learns the catalogue anew
    """The catalogue no longer fits the server; ``error`` is what to tell the caller if a fresh one does not either."""

    def __init__(self, error: OneTrunkError) -> None:
        super().__init__(str(error))
        self.error = error


class Flight:
    """What to send now, what to send again, and when to give up.

    A client sends everything that `departures` yields, waits at most `wait_s` for the next
    landing, reports it by `landed` or `failed`, and goes on until `done`.
    """

    def __init__(
        self,
        rows: Rows,
        tasks: Sequence[str] | None,
        catalogue: Catalogue,
        *,
        url: str,
        max_in_flight: int,
        backoff: Backoff,
        deadline: Deadline,
        traffic: Traffic,
    ) -> None:
        self._rows = rows
        self._url = url
        self._max_in_flight = max_in_flight
        self._backoff = backoff
        self._deadline = deadline
        self._traffic = traffic
        sizes = rows.sizes
        self._ready = deque(plan_batches(rows.groups(catalogue, tasks), sizes, max_rows=catalogue.max_batch_size))
        self._parked: list[tuple[float, int, Batch]] = []  # heap: when to send again, tie-break, batch
        self._tickets = itertools.count()
        self._flying: set[Batch] = set()
        self._tries: Counter[Batch] = Counter()
        self._first_sent: dict[Batch, float] = {}
        self._answers: list[Answer | None] = [None] * len(sizes)

    @property
    def done(self) -> bool:
        """Whether every row has its answer."""
        return not (self._ready or self._parked or self._flying)

    def departures(self) -> Iterator[tuple[Batch, Any, float]]:
        """Batch, its request and the time-out to give gRPC in seconds, for all that may be sent now.

        Raises:
            DeadlineExceeded: the call's time is over.
        """
        now = self._deadline.clock()
        while self._parked and self._parked[0][0] <= now:
            self._ready.append(heapq.heappop(self._parked)[2])
        while self._ready and len(self._flying) < self._max_in_flight and not self._traffic.crowded():
            timeout_s = self._deadline.left_s() + ABANDONED_S
            batch = self._ready.popleft()
            self._flying.add(batch)
            self._first_sent.setdefault(batch, now)
            yield batch, self._request(batch), timeout_s

    def wait_s(self) -> float:
        """The longest to wait for a landing before asking for departures again.

        Raises:
            DeadlineExceeded: the call's time is over.
        """
        left = self._deadline.left_s()
        if self._ready and self._traffic.crowded():
            return min(left, CROWDED_POLL_S)
        if self._parked and len(self._flying) < self._max_in_flight:
            return min(left, max(0.0, self._parked[0][0] - self._deadline.clock()))
        return left

    def landed(self, batch: Batch, response: Any) -> None:
        """Takes the answer of a batch.

        Raises:
            Outdated: it does not fit the catalogue.
            ServerError: it cannot be read.
        """
        self._flying.remove(batch)
        ms = (self._deadline.clock() - self._first_sent[batch]) * 1000
        try:
            arrays = response_arrays(response)
            scores = {task: array.tolist() for task, array in batch_scores(arrays, batch).items()}
            words = batch_words(arrays, batch) if _about_words(batch) else None
            truncated = batch_truncated(arrays, batch) if self._rows.reports_truncation else [False] * len(batch.rows)
        except Misfit as error:
            raise Outdated(error) from None
        readers = batch_readers(batch)
        for at, row in enumerate(batch.rows):
            read = RowRead(self._rows.text(row), truncated[at], words[at]) if words is not None else None
            said = {task.name: readers[task.name].read(task, scores[task.name][at], read) for task in batch.tasks}
            self._answers[row] = Answer(said, truncated[at], ms)

    def failed(self, batch: Batch, error: Any) -> None:
        """Takes the ``grpc.RpcError`` of a batch, and parks the batch if it may be sent again.

        Raises:
            Outdated: the server has other tasks or limits than the catalogue.
            OneTrunkError: the failure is final.
        """
        self._flying.remove(batch)
        self._tries[batch] += 1
        fault = read_fault(error, url=self._url, timeout_s=self._deadline.timeout_s, rows=batch.rows)
        if fault.outdated:
            raise Outdated(fault.error)
        pause = self._backoff.pause_s(fault, self._tries[batch], self._deadline)
        heapq.heappush(self._parked, (self._deadline.clock() + pause, next(self._tickets), batch))

    def answers(self) -> list[Answer]:
        """The answers in the caller's order, once `done`."""
        answers = [answer for answer in self._answers if answer is not None]
        assert len(answers) == len(self._answers)  # plan_batches puts every row into exactly one batch
        return answers

    def _request(self, batch: Batch) -> Any:
        outputs = [task.name for task in batch.tasks]
        if self._rows.reports_truncation:
            outputs.append(TRUNCATED)
        if _about_words(batch):
            outputs.append(TOKEN_WORDS)
        return request_message(self._rows.model, self._rows.inputs(batch.rows), outputs)


def _about_words(batch: Batch) -> bool:
    return any(reader.about_words for reader in batch_readers(batch).values())
