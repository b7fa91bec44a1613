"""A watchdog whose server is made of lists, and a clock that a test moves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
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
from onetrunk.serving.watched import Watched
from tests.fixtures.stand_ins import stand_in

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
    monkeypatch.setattr(watchdog, "time", stand_in(time, monotonic=clock.monotonic))
    return clock


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(watchdog, "stub_processes", lambda pid: list(server.living.values()))
    monkeypatch.setattr(watchdog, "process_state", lambda pid: server.state)
    monkeypatch.setattr(watchdog, "region_bytes", lambda region: server.regions.get(region, MIB))
    monkeypatch.setattr(watchdog, "os", stand_in(os, kill=server.kill))
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
