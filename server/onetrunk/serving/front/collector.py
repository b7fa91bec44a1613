"""Collects texts of different requests that arrive together, and asks Triton about all of them in one request.

Triton would put them into one batch too, but after one gRPC request, one run of the tokenizer and one message between
processes for each of them. Nothing waits for a timer: while few requests are in flight, a text is sent at once; what
arrives meanwhile is sent together when one of them has been answered.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from onetrunk.client import AsyncClient
from onetrunk.client.answer import Answer
from onetrunk.client.rows import TextRows
from onetrunk.client.scheduler import LongText, StaleCatalogue
from onetrunk.client.tracing import trace_context, trace_headers
from onetrunk.protocol.errors import BadInput, OneTrunkError, Problem, ServerError
from onetrunk.serving.front.parts import COLLECTING, TRITON, part

# Requests in flight at a time: one for each core, and one on its way. Fewer leave a core idle; more leave less to
# collect. (On 2 cores, 2, 3 and 4 of them have 0.97, 1.04 and 1.01 of the throughput of single requests to Triton.)
IN_FLIGHT = len(os.sched_getaffinity(0)) + 1

Key = tuple[tuple[str, ...] | None, bool]
"""The tasks, and whether the texts are pairs: what texts must have in common to share a request."""


Hold = Callable[[int, int], AbstractContextManager[None]]
"""Called with the number of windows of a call and their bytes; counts them while the block runs, or refuses them."""

_Read = tuple[list[Answer], list[LongText]]
"""The answers to a call's texts, and the long ones among them, of which there is more to read."""


@dataclass(frozen=True, eq=False)
class _Job:
    """The texts of one call."""

    texts: Sequence[str]
    pairs: Sequence[str | None]
    sent: asyncio.Future[None]
    read: asyncio.Future[_Read]
    trace: Mapping[str, str]


class Collector:
    """Answers texts through one client.

    Attributes:
        client: The client.
    """

    def __init__(self, client: AsyncClient, hold: Hold = lambda windows, size: nullcontext()) -> None:
        """Answer texts.

        Args:
            client: The client.
            hold: Called before a call's long texts are read to their end, window by window.
        """
        self.client = client
        self._hold = hold
        self._waiting: dict[Key, deque[_Job]] = {}
        self._in_flight: set[asyncio.Task[None]] = set()

    async def predict(
        self, texts: Sequence[str], pairs: Sequence[str | None], tasks: Sequence[str] | None
    ) -> list[Answer]:
        """Return an answer for each text.

        Args:
            texts: The texts.
            pairs: The second text of each, or None.
            tasks: The tasks; None asks every task that fits.

        Raises:
            OneTrunkError: Any error of `AsyncClient.predict`. Faults of one call's texts are not told to another's.
            RefusedError: The long texts have too many windows.
        """
        catalogue = await self.client.catalogue()
        TextRows.check(texts, pairs).groups(catalogue, tasks)  # its faults are found before it meets others
        kinds = {pair is not None for pair in pairs}
        if len(kinds) > 1 or len(texts) >= catalogue.max_batch_size:
            with part(TRITON):
                read = await self.client.predict_beginnings(texts, pairs, tasks)
                return await self._read_on(read, texts, pairs, tasks)
        loop = asyncio.get_running_loop()
        job = _Job(texts, pairs, loop.create_future(), loop.create_future(), dict(trace_headers()))
        key = (tuple(tasks) if tasks is not None else None, kinds.pop())
        self._waiting.setdefault(key, deque()).append(job)
        self._send(catalogue.max_batch_size)
        with part(COLLECTING):
            await job.sent
        with part(TRITON):
            # What is left of long texts is read by each call for itself: the others do not wait for it.
            return await self._read_on(await job.read, texts, pairs, tasks)

    async def _read_on(
        self, read: _Read, texts: Sequence[str], pairs: Sequence[str | None], tasks: Sequence[str] | None
    ) -> list[Answer]:
        """Return the answers of a call, once its long texts were read to their end."""
        answers, long_texts = read
        for last_try in (False, True):
            if not long_texts:
                break
            with ExitStack() as held:
                try:
                    found = await self.client.read_windows(
                        long_texts, lambda windows, size: held.enter_context(self._hold(windows, size))
                    )
                except StaleCatalogue as stale:
                    if last_try:
                        raise stale.error from None
                else:
                    return [found.get(row, answer) for row, answer in enumerate(answers)]
            answers, long_texts = await self.client.predict_beginnings(texts, pairs, tasks)
        return answers

    def _send(self, most_rows: int) -> None:
        """Send what waits, the oldest tasks first, as long as few requests are in flight."""
        while self._waiting and len(self._in_flight) < IN_FLIGHT:
            key = next(iter(self._waiting))
            jobs = self._taken(key, most_rows)
            task = asyncio.create_task(self._ask(key, jobs))
            self._in_flight.add(task)
            task.add_done_callback(partial(self._sent, most_rows))

    def _sent(self, most_rows: int, done: asyncio.Task[None]) -> None:
        self._in_flight.discard(done)
        self._send(most_rows)

    def _taken(self, key: Key, most_rows: int) -> list[_Job]:
        queue, rows = self._waiting.pop(key), 0
        jobs: list[_Job] = []
        while queue and (not jobs or rows + len(queue[0].texts) <= most_rows):
            jobs.append(queue.popleft())
            rows += len(jobs[-1].texts)
        if queue:
            self._waiting[key] = queue  # behind the others
        jobs = [job for job in jobs if not job.sent.done()]  # without those that nobody waits for
        for job in jobs:
            job.sent.set_result(None)
        return jobs

    async def _ask(self, key: Key, jobs: list[_Job]) -> None:
        while jobs:
            texts = [text for job in jobs for text in job.texts]
            pairs = [pair for job in jobs for pair in job.pairs]
            try:
                # Triton's part of a request that several share is seen in the trace of the first that has one.
                with trace_context(next((job.trace for job in jobs if job.trace), {})):
                    answers, long_texts = await self.client.predict_beginnings(texts, pairs, key[0])
            except BadInput as error:
                jobs = _without_faulty(jobs, error)
                continue
            except OneTrunkError as error:
                _fail(jobs, error)
            except Exception as error:
                _fail(jobs, ServerError(f"the front failed: {error}"))
                raise
            else:
                at = 0
                for job in jobs:
                    rows = range(at, at + len(job.texts))
                    own = [replace(one, row=one.row - at) for one in long_texts if one.row in rows]
                    _settle(job, (answers[at : rows.stop], own))
                    at = rows.stop
            return


def _without_faulty(jobs: list[_Job], error: BadInput) -> list[_Job]:
    """Tell each job the faults of its own texts, and return the jobs that have none."""
    kept, at = [], 0
    for job in jobs:
        own = [
            Problem(problem.row - at, problem.message)
            for problem in error.problems
            if problem.row is not None and at <= problem.row < at + len(job.texts)
        ]
        at += len(job.texts)
        if own:
            _fail([job], BadInput(own))
        else:
            kept.append(job)
    if len(kept) == len(jobs):  # a fault of nobody's rows: the next try would end in the same way
        _fail(jobs, error)
        return []
    return kept


def _fail(jobs: Sequence[_Job], error: OneTrunkError) -> None:
    for job in jobs:
        if not job.read.done():
            job.read.set_exception(error)


def _settle(job: _Job, read: _Read) -> None:
    if not job.read.done():
        job.read.set_result(read)
