"""Texts of several calls that share a request: what is sent together, and whose faults are whose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.scheduler import LongText, StaleCatalogue
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import BadInput, NotReady, Problem, ServerError, UnknownTask
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.collector import IN_FLIGHT, Collector

TASKS = {
    "mood": TaskInfo(
        name="mood",
        kind="classification",
        form="single",
        labels=("a", "b"),
        metric="accuracy",
        tap=1,
        layers=1,
        version=1,
    )
}
CATALOGUE = Catalogue("trunk", 4, 32, (16, 32), TASKS)


class FakeClient:
    """Answers each text with its length, when it is let; refuses texts that say so."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.free = asyncio.Event()
        self.error: Exception | None = None
        self.long: list[list[tuple[int, str]]] = []
        self.windows_free = asyncio.Event()
        self.stale: list[StaleCatalogue] = []

    async def catalogue(self) -> Catalogue:
        return CATALOGUE

    async def predict_beginnings(self, texts: Sequence[str], pairs: Any, tasks: Any) -> tuple[list[Answer], list[Any]]:
        self.asked.append(list(texts))
        await self.free.wait()
        if self.error is not None:
            raise self.error
        if "refused" in texts:
            raise BadInput([Problem(list(texts).index("refused"), "text: refused")])
        answers = [Answer({}, False, len(text)) for text in texts]
        return answers, [
            LongText(row, text, None, None, answers[row])  # type: ignore[arg-type]
            for row, text in enumerate(texts)
            if text.startswith("long")
        ]

    async def read_windows(self, long_texts: Sequence[LongText], allow: Any) -> dict[int, Answer]:
        self.long.append([(one.row, one.text) for one in long_texts])
        allow(10 * len(long_texts), 1000)
        await self.windows_free.wait()
        if self.stale:
            raise self.stale.pop()
        return {one.row: Answer({}, False, 1000 + len(one.text)) for one in long_texts}


def run(test: Any) -> None:
    async def all_of_it() -> None:
        client = FakeClient()
        await asyncio.wait_for(test(client, Collector(client)), 60)  # type: ignore[arg-type]

    asyncio.run(all_of_it())


def ask(collector: Collector, *texts: str) -> asyncio.Task[list[Answer]]:
    return asyncio.create_task(collector.predict(texts, [None] * len(texts), ["mood"]))


def test_what_arrives_while_requests_are_in_flight_is_sent_together() -> None:
    async def test(client: FakeClient, collector: Collector) -> None:
        calls = [ask(collector, "x" * n) for n in range(1, IN_FLIGHT + 10)]
        await asyncio.sleep(0.01)
        assert [len(texts) for texts in client.asked] == [1] * IN_FLIGHT
        client.free.set()
        answers = await asyncio.gather(*calls)
        assert [answer.ms for (answer,) in answers] == list(range(1, IN_FLIGHT + 10))
        assert [len(texts) for texts in client.asked[IN_FLIGHT:]] == [4, 4, 1], "4 is the server's largest batch"

    run(test)


def test_a_fault_is_told_to_its_own_call_with_its_own_row() -> None:
    async def test(client: FakeClient, collector: Collector) -> None:
        first = [ask(collector, "first") for _ in range(IN_FLIGHT)]
        together = [ask(collector, "a"), ask(collector, "bb", "refused"), ask(collector, "ccc")]
        await asyncio.sleep(0.01)
        client.free.set()
        found = await asyncio.gather(*together, return_exceptions=True)
        await asyncio.gather(*first)
        assert [answer.ms for answer in (*found[0], *found[2])] == [1, 3]
        assert isinstance(found[1], BadInput)
        assert found[1].problems == (Problem(1, "text: refused"),)
        assert client.asked[-1] == ["a", "ccc"]

    run(test)


def test_a_failure_of_the_server_is_everybodys() -> None:
    async def test(client: FakeClient, collector: Collector) -> None:
        client.error = NotReady("down")
        client.free.set()
        found = await asyncio.gather(*(ask(collector, "a") for _ in range(9)), return_exceptions=True)
        assert {str(error) for error in found} == {"down"}
        client.error = None
        assert [answer.ms for answer in await ask(collector, "abc")] == [3]

    run(test)


def test_nobodys_texts_are_not_sent_and_wrong_input_meets_no_other() -> None:
    async def test(client: FakeClient, collector: Collector) -> None:
        first = [ask(collector, "first") for _ in range(IN_FLIGHT)]
        await asyncio.sleep(0.01)
        left = ask(collector, "left")
        await asyncio.sleep(0.01)
        left.cancel()
        stays = ask(collector, "stays")
        with pytest.raises(BadInput, match="row 0: text is empty"):
            await ask(collector, "")
        with pytest.raises(UnknownTask):
            await collector.predict(["a"], [None], ["moon"])
        client.free.set()
        await asyncio.gather(stays, *first)
        assert client.asked[IN_FLIGHT:] == [["stays"]]

    run(test)


def test_many_texts_go_by_themselves() -> None:
    async def test(client: FakeClient, collector: Collector) -> None:
        client.free.set()
        assert len(await ask(collector, *"abcdefgh")) == 8
        assert client.asked == [list("abcdefgh")]

    run(test)


def test_what_is_left_of_a_long_text_is_read_beside_the_queue_and_short_ones_do_not_wait() -> None:
    async def test(client: FakeClient, collector: Collector) -> None:
        client.free.set()
        calls = [ask(collector, "short"), ask(collector, "a", "long text"), *(ask(collector, "long") for _ in range(9))]
        assert [answer.ms for answer in await calls[0]] == [5]
        while len(client.long) < 10:
            await asyncio.sleep(0)
        assert [answer.ms for answer in await ask(collector, "b")] == [1]  # though ten texts are being read
        assert [(1, "long text")] in client.long
        client.windows_free.set()
        assert [answer.ms for answer in await calls[1]] == [1, 1009]

    run(test)


def test_windows_are_counted_while_they_are_read_or_refused() -> None:
    held: list[tuple[int, int]] = []

    @contextmanager
    def hold(windows: int, size: int) -> Iterator[None]:
        if windows > 10:
            raise RefusedError(413, "too many windows")
        held.append((windows, size))
        yield
        held.clear()

    async def test(client: FakeClient, _: Collector) -> None:
        collector = Collector(client, hold)  # type: ignore[arg-type]
        client.free.set()
        call = ask(collector, "long")
        while not held:
            await asyncio.sleep(0)
        assert held == [(10, 1000)]
        client.windows_free.set()
        await call
        assert not held
        with pytest.raises(RefusedError, match="too many windows"):
            await ask(collector, "long", "long")

    run(test)


def test_a_long_text_is_read_again_if_the_tasks_have_changed_meanwhile() -> None:
    async def test(client: FakeClient, collector: Collector) -> None:
        client.free.set()
        client.windows_free.set()
        client.stale = [StaleCatalogue(ServerError("other tasks"))]
        assert [answer.ms for answer in await ask(collector, "a", "long")] == [1, 1004]
        assert client.asked == [["a", "long"]] * 2
        client.stale = [StaleCatalogue(ServerError("other tasks")) for _ in range(2)]
        with pytest.raises(ServerError, match="other tasks"):
            await ask(collector, "long")

    run(test)
