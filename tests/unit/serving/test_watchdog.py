"""The watchdog's decisions, with a server made of lists."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from onetrunk.protocol.errors import NotReady, OneTrunkError, ServerError
from onetrunk.serving import watchdog
from onetrunk.serving.watchdog import RestartBackoff, Stub, Watchdog, Watched, parse_stub

MOOD, TOPIC = Stub("head_mood", 1, "head_mood_0_0"), Stub("head_topic", 1, "head_topic_0_0")


class FakeServer:
    """Both the process and the admin client of a server."""

    pid = 1

    def __init__(self) -> None:
        self.status: int | None = None
        self.living = {MOOD, TOPIC}
        self.unloaded: set[str] = set()
        self.reloads: list[str] = []
        self.reload_fails = False
        self.answers = 0
        self.answers_probes = True
        self.probes = 0

    def exit_status(self) -> int | None:
        return self.status

    def is_loaded(self, model: str, version: int) -> bool:
        return model not in self.unloaded

    def reload(self, model: str, count: int) -> None:
        self.reloads.append(model)
        if self.reload_fails:
            raise ServerError("the file is broken")
        self.living = {MOOD, TOPIC}

    def probe(self) -> None:
        self.probes += 1
        if not self.answers_probes:
            raise ServerError("deadline exceeded")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(watchdog, "living_stubs", lambda pid: set(server.living))
    monkeypatch.setattr(watchdog, "answers_given", lambda admin: admin.answers)
    monkeypatch.setattr(watchdog, "probe_all_outputs", lambda admin, timeout_s: admin.probe())
    return server


@pytest.fixture
def make(server: FakeServer) -> Callable[..., Any]:
    def make(
        restart: Callable[[], Any] = lambda: pytest.fail("restarted"),
        probe_interval_s: float | None = None,
        give_up: Callable[[OneTrunkError], None] = lambda failure: pytest.fail(str(failure)),
    ) -> Any:
        return Watchdog(
            Watched(server, server),  # type: ignore[arg-type]
            restart,
            give_up,
            probe_interval_s=probe_interval_s,
            restarts=3,
        )

    return make


def test_a_dead_process_is_revived_at_the_second_look(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    dog._look()
    server.living = {TOPIC}
    dog._look()
    assert server.reloads == []
    dog._look()
    assert server.reloads == ["head_mood"]
    dog._look()
    assert server.reloads == ["head_mood"]


def test_a_process_that_is_only_replaced_is_left_alone(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    for living in ({MOOD, TOPIC}, {TOPIC}, {MOOD, TOPIC}, {TOPIC}, {MOOD, TOPIC}):
        server.living = living
        dog._look()
    assert server.reloads == []


def test_a_model_unloaded_on_purpose_is_not_revived(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    server.living, server.unloaded = {TOPIC}, {"head_mood"}
    for _ in range(4):
        dog._look()
    server.unloaded = set()
    dog._look()
    assert server.reloads == []


def test_a_model_that_will_not_load_is_tried_ever_more_rarely(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dog = make()
    server.reload_fails, server.living = True, {TOPIC}
    tries_at = []
    for _ in range(4 * 40):  # forty seconds
        clock.now_s += 0.25
        dog._look()
        if len(server.reloads) > len(tries_at):
            tries_at.append(clock.now_s)
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(tries_at)]
    assert waits == [1, 2, 4, 8, 16]
    assert "head_mood died and does not load again (try 1): the file is broken" in caplog.text


def test_a_dead_server_is_restarted_a_bounded_number_of_times(
    server: FakeServer, make: Callable[..., Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts = []
    given_up: list[OneTrunkError] = []

    def restart() -> Watched:
        restarts.append(clock.now_s)
        clock.now_s += 60
        return Watched(server, server)  # type: ignore[arg-type]

    monkeypatch.setattr(watchdog, "POLL_S", 0.001)
    server.status = 137
    make(restart=restart, give_up=given_up.append).run()
    assert len(restarts) == 3
    (failure,) = given_up
    assert isinstance(failure, ServerError)
    assert "exit status 137" in str(failure)
    assert "3 restarts" in str(failure)


def test_an_idle_server_is_asked_and_a_busy_one_is_not(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make(probe_interval_s=60)
    for _ in range(3):
        server.answers += 5
        clock.now_s += 61
        dog._look()
    assert server.probes == 0
    for _ in range(2):
        clock.now_s += 61
        dog._look()
        dog._look()
    assert server.probes == 2


def test_a_server_that_answers_nobody_is_restarted(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    restarts = []

    def restart() -> Watched:
        restarts.append(1)
        server.answers_probes = True
        return Watched(server, server)  # type: ignore[arg-type]

    dog = make(restart=restart, probe_interval_s=60)
    server.answers_probes = False
    for expected in (0, 0, 1, 1):
        clock.now_s += 61
        dog._look()
        assert len(restarts) == expected
    assert "no answer (1 of 3): deadline exceeded" in caplog.text


def test_a_server_that_goes_away_in_the_middle_of_a_question_ends_nothing(
    server: FakeServer, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = make()
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            dog.stop()
        raise NotReady("connection refused")

    monkeypatch.setattr(watchdog, "POLL_S", 0.001)
    monkeypatch.setattr(dog, "_look", look)
    dog.run()
    assert len(looks) == 3


def test_a_server_that_does_not_start_again_is_tried_again_then_given_up(
    server: FakeServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[ServerError] = []

    def restart() -> Watched:
        clock.now_s += 60
        raise ServerError("head_mood: broken")

    monkeypatch.setattr(watchdog, "POLL_S", 0.001)
    dog = Watchdog(Watched(server, server), restart, told.append, probe_interval_s=None, restarts=2)  # type: ignore[arg-type]
    server.status = 1
    dog.run()
    assert [str(error) for error in told] == ["head_mood: broken"]
    assert "Triton does not restart (try 1): head_mood: broken" in caplog.text


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


def test_a_stubs_command_line_names_its_model() -> None:
    command = "/b/triton_python_backend_stub /r/head_mood/3/model.onnx region 1 1 77 /b 336 head_mood_0_0 /b/ort"
    assert parse_stub(command.split()) == Stub("head_mood", 3, "head_mood_0_0")
    assert parse_stub(["/usr/bin/tritonserver", "--model-repository=/r"]) is None
    assert parse_stub([]) is None
