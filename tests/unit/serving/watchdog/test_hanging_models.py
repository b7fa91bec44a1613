"""Models that do not answer, and those that only seem so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest

from onetrunk.protocol.errors import ServerError
from tests.unit.serving.watchdog.conftest import MODELS, MOOD, Clock, FakeServer, look, process


def test_a_model_that_leaves_a_request_waiting_is_replaced_within_ten_seconds(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dog = make(probe_interval_s=5.0)
    look(dog, clock, 20)
    assert server.killed == []
    del server.answers["head_mood"]
    look(dog, clock, 10)
    assert server.killed == [100]
    assert server.reloads == ["head_mood"]
    assert "did nothing for 3 s although a request waits for it" in caplog.text


def test_an_endless_loop_is_told_from_hard_work(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.living[100] = process(MOOD, 100, cpu_s=4.0)  # what loading and a full batch took
    dog = make(probe_interval_s=5.0)
    del server.answers["head_mood"]
    used_s = itertools.count(4.0, 0.25)

    def work() -> None:
        if 100 in server.living:
            server.living[100] = process(MOOD, 100, psutil.STATUS_RUNNING, next(used_s))

    look(dog, clock, 11, work)
    assert server.killed == []
    look(dog, clock, 3, work)
    assert server.killed == [100]
    assert "s of CPU time without an answer (limit 12 s)" in caplog.text


def test_a_slow_model_with_a_full_queue_is_left_alone(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make(probe_interval_s=5.0)
    del server.answers["head_mood"]  # its probes wait at the end of the queue, for ever
    ticks = itertools.count()

    def answer_now_and_then() -> None:
        if next(ticks) % 24 == 0:  # every six seconds
            server.successes["head_mood"] += 1
        server.living[100] = replace(server.living[100], cpu_s=server.living[100].cpu_s + 0.2)

    look(dog, clock, 120, answer_now_and_then)
    assert server.killed == []


def test_who_was_stopped_itself_judges_nobody_by_the_clock(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make(probe_interval_s=5.0)
    look(dog, clock, 6)
    del server.answers["head_mood"]
    look(dog, clock, 5)
    clock.now_s += 3600
    dog._look()
    assert server.killed == []


def test_nobody_is_judged_while_the_machine_is_too_busy_for_triton_itself(
    server: FakeServer, make: Callable[..., Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = make(probe_interval_s=5.0)
    del server.answers["head_mood"]
    look(dog, clock, 7)
    statistics = server.statistics

    def slowly() -> list[Any]:
        clock.now_s += 1.5
        return statistics()

    monkeypatch.setattr(server, "statistics", slowly)
    look(dog, clock, 20)
    assert server.killed == []
    monkeypatch.setattr(server, "statistics", statistics)
    look(dog, clock, 2)
    assert server.killed == [100]


def test_a_model_that_fails_its_probes_is_replaced_if_it_answered_them_before(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dog = make(probe_interval_s=5.0)
    server.answers["head_topic"] = ServerError("never reads so short a text")
    look(dog, clock, 30)
    server.answers["head_mood"] = ServerError("no shared memory")
    look(dog, clock, 14)
    assert server.killed == [100]
    assert "it fails to answer: no shared memory" in caplog.text


def test_who_is_asked_is_not_probed(server: FakeServer, make: Callable[..., Any], clock: Clock) -> None:
    dog = make(probe_interval_s=5.0)

    def ask() -> None:
        for model in MODELS:
            server.successes[model] += 1

    look(dog, clock, 60, ask)
    assert server.probes == []
    look(dog, clock, 24)
    assert server.probes.count("head_mood") == 4


def test_without_an_interval_nothing_is_asked(server: FakeServer, make: Callable[..., Any], clock: Clock) -> None:
    look(make(), clock, 100)
    assert server.probes == []
