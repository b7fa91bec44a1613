"""When the watchdog starts Triton itself again, and how often it tries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from onetrunk.protocol.errors import NotReady, ServerError
from onetrunk.serving import watchdog
from onetrunk.serving.front.settings import TritonAddress
from onetrunk.serving.watched import RestartBackoff, Watched
from tests.unit.serving.watchdog.conftest import TRITON, Clock, FakeServer, look


def test_an_ensemble_that_fails_although_its_parts_answer_restarts_triton(
    server: FakeServer,
    make: Callable[..., Any],
    revive: Callable[[], Watched],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dog = make(probe_interval_s=5.0, restart=revive)
    server.answers["multitask"] = ServerError("a part is missing")
    look(dog, clock, 90)
    assert server.killed == [TRITON]
    assert "multitask fails to answer although its parts do: a part is missing" in caplog.text


def test_an_ensemble_that_never_answers_although_its_parts_do_restarts_triton(
    server: FakeServer, make: Callable[..., Any], revive: Callable[[], Watched], clock: Clock
) -> None:
    dog = make(probe_interval_s=5.0, restart=revive)
    del server.answers["multitask"]
    look(dog, clock, 85)
    assert server.killed == []
    look(dog, clock, 10)
    assert server.killed == [TRITON]


def test_an_ensembles_probe_may_wait_in_a_long_queue(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make(probe_interval_s=5.0)
    del server.answers["multitask_tokens"]

    def work() -> None:
        for model in ("head_mood", "head_topic", "multitask"):
            server.successes[model] += 1

    look(dog, clock, 300, work)
    assert server.probes == ["multitask_tokens"]
    assert server.killed == []


def test_if_no_model_answers_it_is_triton_that_hangs(
    server: FakeServer, make: Callable[..., Any], revive: Callable[[], Watched], clock: Clock
) -> None:
    dog = make(probe_interval_s=5.0, restart=revive)
    server.answers = {}
    look(dog, clock, 10)
    assert server.killed == [TRITON]
    assert server.reloads == []


def test_a_stopped_triton_is_restarted(
    server: FakeServer,
    make: Callable[..., Any],
    revive: Callable[[], Watched],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dog = make(restart=revive)
    look(dog, clock, 1)
    server.state = psutil.STATUS_STOPPED
    look(dog, clock, 2)
    assert server.killed == [TRITON]
    assert "Triton answers again" in caplog.text


def test_a_triton_that_leaves_questions_unanswered_is_restarted(
    server: FakeServer, make: Callable[..., Any], revive: Callable[[], Watched], clock: Clock
) -> None:
    dog = make(restart=revive)
    server.answers_questions = False
    for _ in range(2):
        clock.now_s += 1
        with pytest.raises(NotReady):
            dog._look()
    assert server.killed == []
    clock.now_s += 1
    dog._look()
    assert server.killed == [TRITON]


def test_a_server_that_was_ready_is_never_given_up(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []

    def restart() -> Watched:
        tries.append(clock.now_s)
        server.status = 139
        if len(tries) % 2:
            raise ServerError("head_mood: broken")
        return Watched(server, server, TritonAddress(folder=Path()))  # type: ignore[arg-type]

    dog = make(restart=restart)
    dog._stopping.wait = lambda seconds: setattr(clock, "now_s", clock.now_s + 0.25)  # type: ignore[method-assign]
    server.status = 139
    for _ in range(20):
        dog._look()
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(tries)]
    assert waits == [1, 2, 4, 8, 16, 32, *[60] * 13]
    assert "Triton died: exit status 139: SIGSEGV; Triton 24.10 dies of cancelled gRPC requests" in caplog.text
    assert "server#7368" in caplog.text
    assert "Triton does not restart (try 1, the next one in 1 s): head_mood: broken" in caplog.text
    clock.now_s += 400
    dog._look()
    assert dog._server_backoff.tries == 1, "after a calm time the waits begin anew"


def test_a_full_disk_at_a_restart_is_named(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def restart() -> Watched:
        raise OSError(28, "No space left on device", "/tmp/onetrunk-x")

    dog = make(restart=restart)
    server.status = 1
    dog._look()
    assert "No space left on device" in caplog.text


def test_a_server_that_goes_away_in_the_middle_of_a_question_ends_nothing(
    server: FakeServer, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = make()
    looks = []

    def look_once() -> None:
        looks.append(1)
        if len(looks) == 4:
            dog.stop()
        raise NotReady("connection refused") if len(looks) % 2 else RuntimeError("a bug")

    monkeypatch.setattr(watchdog, "POLL_S", 0.001)
    monkeypatch.setattr(dog, "_look", look_once)
    dog.run()
    assert len(looks) == 4


def test_backoff_forgets_after_calm() -> None:
    backoff = RestartBackoff(longest_s=4, calm_s=100)
    assert backoff.may_try(0)
    backoff.note_try(0)
    assert not backoff.may_try(0.5)
    assert backoff.may_try(1)
    for _ in range(5):
        backoff.note_try(1)
    assert not backoff.may_try(4.9)
    assert backoff.may_try(5), "never longer than the longest"
    assert backoff.may_try(102)
    assert backoff.tries == 0
