"""The watchdog's decisions, with a server made of lists."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tritonclient.grpc import model_config_pb2

from onetrunk.protocol.errors import NotReady, ServerError
from onetrunk.serving import watchdog, watched
from onetrunk.serving.front.settings import TritonAddress
from onetrunk.serving.shared_memory import MIB
from onetrunk.serving.stubs import Stub, StubProcess
from onetrunk.serving.watchdog import Watchdog
from onetrunk.serving.watched import RestartBackoff, Watched

MOOD, TOPIC = Stub("head_mood", 1, "head_mood_0_0"), Stub("head_topic", 1, "head_topic_0_0")
MODELS = ("head_mood", "head_topic", "multitask", "multitask_tokens")
TRITON = 7


def process(stub: Stub, pid: int, state: str = psutil.STATUS_SLEEPING, cpu_s: float = 1.0) -> StubProcess:
    return StubProcess(stub, pid, state, cpu_s, f"region_{stub.model}")


class FakeServer:
    """Both the process and the admin client of a server."""

    pid = TRITON

    def __init__(self) -> None:
        self.status: int | None = None
        self.state = psutil.STATUS_SLEEPING
        self.living = {100: process(MOOD, 100), 200: process(TOPIC, 200)}
        self.unloaded: set[str] = set()
        self.reloads: list[str] = []
        self.reload_fails = False
        self.successes = dict.fromkeys(MODELS, 0)
        self.answers_questions = True
        # Model -> what it answers its probes with; a model that is not named never answers.
        self.answers: dict[str, Exception | None] = dict.fromkeys(MODELS)
        self.probes: list[str] = []
        self.killed: list[int] = []
        self.regions: dict[str, int] = {}

    def exit_status(self) -> int | None:
        return self.status

    def is_loaded(self, model: str, version: int) -> bool:
        return model not in self.unloaded

    def reload(self, model: str, count: int) -> None:
        self.reloads.append(model)
        if self.reload_fails:
            raise ServerError("the file is broken")
        stub = {"head_mood": MOOD, "head_topic": TOPIC}[model]
        pid = max([100, *self.living]) + 1
        self.living = {pid: found for pid, found in self.living.items() if found.stub != stub}
        self.living[pid] = process(stub, pid)
        self.answers[model] = None

    def statistics(self) -> list[Any]:
        if not self.answers_questions:
            raise NotReady("deadline exceeded")
        return [
            SimpleNamespace(
                name=name, version="1", inference_stats=SimpleNamespace(success=SimpleNamespace(count=count))
            )
            for name, count in self.successes.items()
        ]

    def config(self, model: str) -> Any:
        tensor = model_config_pb2.ModelInput(name="hidden_state", data_type=model_config_pb2.TYPE_FP32, dims=[-1, 8])
        return model_config_pb2.ModelConfig(name=model, max_batch_size=2, input=[tensor])

    def infer_later(self, model: str, version: int, inputs: Any) -> Future[None]:
        self.probes.append(model)
        answer: Future[None] = Future()
        if model in self.answers:
            if (error := self.answers[model]) is None:
                answer.set_result(None)
                self.successes[model] += 1
            else:
                answer.set_exception(error)
        return answer

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.killed.append(pid)
        if pid == TRITON:
            self.status = 137
        else:
            del self.living[pid]


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
    monkeypatch.setattr(watchdog, "stub_processes", lambda pid: list(server.living.values()))
    monkeypatch.setattr(watchdog, "process_state", lambda pid: server.state)
    monkeypatch.setattr(watchdog, "region_bytes", lambda region: server.regions.get(region, MIB))
    monkeypatch.setattr(watchdog.os, "kill", server.kill)
    monkeypatch.setattr(watched, "oom_kills", lambda: 0)
    return server


@pytest.fixture
def make(server: FakeServer) -> Callable[..., Any]:
    def make(
        restart: Callable[[], Any] = lambda: pytest.fail("restarted"), probe_interval_s: float | None = None
    ) -> Any:
        return Watchdog(
            Watched(server, server, TritonAddress(folder=Path())),  # type: ignore[arg-type]
            restart,
            max_length=16,
            probe_interval_s=probe_interval_s,
            run_apart=lambda job: job(),
        )

    return make


@pytest.fixture
def revive(server: FakeServer) -> Callable[[], Watched]:
    """A restart that works."""

    def restart() -> Watched:
        server.status, server.state = None, psutil.STATUS_SLEEPING
        server.answers, server.answers_questions = dict.fromkeys(MODELS), True
        return Watched(server, server, TritonAddress(folder=Path()))  # type: ignore[arg-type]

    return restart


def look(dog: Any, clock: Clock, seconds: float, each: Callable[[], None] = lambda: None) -> None:
    """Lets it look four times a second; `each` happens before every look."""
    for _ in range(round(seconds * 4)):
        clock.now_s += 0.25
        each()
        dog._look()


def test_a_dead_process_is_revived_at_the_second_look(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    dog._look()
    del server.living[100]
    dog._look()
    assert server.reloads == []
    dog._look()
    assert server.reloads == ["head_mood"]
    dog._look()
    assert server.reloads == ["head_mood"]


def test_a_process_that_is_only_replaced_is_left_alone(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    both = dict(server.living)
    for living in (both, {200: both[200]}, both, {200: both[200]}, both):
        server.living = dict(living)
        dog._look()
    assert server.reloads == []


def test_a_model_unloaded_on_purpose_is_not_revived(server: FakeServer, make: Callable[..., Any]) -> None:
    dog = make()
    del server.living[100]
    server.unloaded = {"head_mood"}
    for _ in range(4):
        dog._look()
    server.unloaded = set()
    dog._look()
    assert server.reloads == []


def test_a_model_that_will_not_load_is_tried_ever_more_rarely(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dog = make()
    server.reload_fails = True
    del server.living[100]
    tries_at = []

    def note() -> None:
        if len(server.reloads) > len(tries_at):
            tries_at.append(clock.now_s)

    look(dog, clock, 40, note)
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(tries_at)]
    assert waits == [1, 2, 4, 8, 16]
    assert "head_mood died and does not load again (try 1): the file is broken" in caplog.text


def test_all_other_models_are_watched_while_one_loads(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make()
    jobs: list[Callable[[], None]] = []
    dog._run_apart = jobs.append
    del server.living[100]
    look(dog, clock, 5)
    assert len(jobs) == 1, "loading once is enough"
    del server.living[200]
    look(dog, clock, 1)
    assert len(jobs) == 2
    for job in jobs:
        job()
    look(dog, clock, 5)
    assert server.reloads == ["head_mood", "head_topic"]


@pytest.mark.parametrize("probe_interval_s", [5.0, None])
def test_a_stopped_process_is_replaced_and_its_neighbour_left_alone(
    server: FakeServer,
    make: Callable[..., Any],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    probe_interval_s: float | None,
) -> None:
    dog = make(probe_interval_s=probe_interval_s)
    look(dog, clock, 2)
    server.living[100] = process(MOOD, 100, psutil.STATUS_STOPPED)
    look(dog, clock, 4)
    assert server.killed == [100]
    assert server.reloads == ["head_mood"]
    assert "head_mood hangs: its process is stopped by a signal" in caplog.text
    assert "head_mood hung and was reloaded" in caplog.text


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


def test_memory_beyond_a_models_share_is_given_back_once_nobody_asks(
    server: FakeServer, make: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dog = make(probe_interval_s=5.0)
    server.regions = {"region_head_mood": 512 * MIB, "region_head_topic": 9 * MIB}

    def ask() -> None:
        server.successes["head_mood"] += 1

    look(dog, clock, 30, ask)
    assert server.reloads == []

    def give_back() -> None:
        if server.reloads:
            server.regions["region_head_mood"] = MIB

    look(dog, clock, 30, give_back)
    assert server.reloads == ["head_mood"], "and the watchdog's own probes are nobody's"
    assert server.killed == []
    assert "head_mood held 512 MiB of shared memory (its share is 9 MiB) and was reloaded" in caplog.text


def test_memory_of_a_process_whose_successor_runs_is_no_reason_to_reload_again(
    server: FakeServer, make: Callable[..., Any], clock: Clock
) -> None:
    dog = make(probe_interval_s=5.0)
    look(dog, clock, 30)  # nobody asks it
    server.living[300] = replace(process(MOOD, 300), region="region_of_the_successor")
    server.regions = {"region_head_mood": 512 * MIB}
    look(dog, clock, 3)
    assert server.reloads == []
    del server.living[100]
    look(dog, clock, 30)
    assert server.reloads == []


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
