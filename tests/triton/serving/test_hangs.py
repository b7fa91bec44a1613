"""A model that hangs is noticed and replaced, and its neighbours answer all the while.

How soon that is, tests/unit/serving/watchdog says by a clock of its own: here a busy machine may take its time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from onetrunk.admin import AdminClient
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.serving import Server
from onetrunk.serving.shared_memory import MIB, region_bytes
from onetrunk.serving.stubs import StubProcess, stub_processes

pytestmark = pytest.mark.hostile

FREE_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
WAIT_S = 60.0

# A head that answers rightly until a file appears, and then hangs in one of two ways.
TRAP = """
import os, threading
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        if os.path.exists({loop!r}):
            os.remove({loop!r})
            while True:
                pass
        if os.path.exists({wait!r}):
            os.remove({wait!r})
            threading.Event().wait()
        def answer(request):
            rows = len(pb_utils.get_input_tensor_by_name(request, "attention_mask").as_numpy())
            value = pb_utils.Tensor("topic", np.zeros((rows, 3), np.float32))
            return pb_utils.InferenceResponse([value])
        return [answer(request) for request in requests]
"""


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a file springs a trap."""
    return tmp_path_factory.mktemp("traps")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, make_repository: Callable[[Path], Path], traps: Path
) -> Iterator[Server]:
    """A server whose head `topic` is a trap."""
    path = make_repository(tmp_path_factory.mktemp("hangs") / "model_repository")
    config = path / "head_topic/config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
    (path / "head_topic/1/model.onnx").unlink()
    (path / "head_topic/1/model.py").write_text(TRAP.format(loop=str(traps / "loop"), wait=str(traps / "wait")))
    with Server(path, **FREE_PORTS) as running:
        yield running


class Clients:
    """One client a task, each asking some thirty times a second."""

    def __init__(self, server: Server, tasks: list[str]) -> None:
        self.answered = dict.fromkeys(tasks, 0)
        self.failed = dict.fromkeys(tasks, 0)
        self._server = server
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[task], daemon=True) for task in tasks]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _ask(self, task: str) -> None:
        # Patient, since an impatient client would end Triton: it dies of cancelled requests.
        with AdminClient(self._server.grpc_url, timeout_s=120) as admin:
            while not self._done.wait(0.03):
                try:
                    admin.ask("multitask", [("a good day", "")], [task])
                    self.answered[task] += 1
                except OneTrunkError:
                    self.failed[task] += 1


def stub(server: Server, model: str) -> StubProcess:
    assert server.pid is not None
    return next(found for found in stub_processes(server.pid) if found.stub.model == model)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_outage(
    hang: Callable[[], None], clients: Clients, victim: str, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    """Lets a model hang, and checks that this was noticed, why, and that it answers again."""
    neighbours = [task for task in clients.answered if task != victim]
    wait_until(lambda: all(clients.answered.values()))
    caplog.clear()
    at_first = dict(clients.answered)
    hang()
    wait_until(lambda: any(" hangs: " in record.message for record in caplog.records))
    wait_until(lambda: any(" hung and was reloaded" in record.message for record in caplog.records))
    before = dict(clients.answered)
    wait_until(lambda: clients.answered[victim] > before[victim])
    assert f"head_{victim} hangs: {reason}" in caplog.records[0].message
    assert {task: clients.failed[task] for task in neighbours} == dict.fromkeys(neighbours, 0)
    assert all(before[task] > at_first[task] for task in neighbours)


def test_a_stopped_process_under_load(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with Clients(server, ["mood", "topic", "match"]) as clients:
        check_outage(
            lambda: os.kill(stub(server, "head_mood").pid, signal.SIGSTOP),
            clients,
            "mood",
            caplog,
            "its process is stopped by a signal",
        )


@pytest.mark.parametrize(
    ("trap", "reason"), [("wait", "its process did nothing for 3 s"), ("loop", "its process used ")]
)
def test_a_model_that_never_answers_under_load(
    server: Server, caplog: pytest.LogCaptureFixture, traps: Path, trap: str, reason: str
) -> None:
    with Clients(server, ["mood", "topic", "match"]) as clients:
        check_outage((traps / trap).touch, clients, "topic", caplog, reason)


def test_an_idle_process_that_is_stopped(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for model in ("trunk_00_01", "tokenizer"):
        caplog.clear()
        os.kill(stub(server, model).pid, signal.SIGSTOP)
        wait_until(lambda: len(caplog.records) > 0)
        wait_until(lambda: len(caplog.records) > 1)
        assert f"{model} hung and was reloaded" in caplog.records[1].message
        with Clients(server, ["mood"]) as clients:
            wait_until(lambda c=clients: c.answered["mood"] > 0)
            assert clients.failed["mood"] == 0


def test_shared_memory_that_long_texts_took_is_given_back(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    texts = np.array([[b"good " * 150_000]] * 32, dtype=np.object_)
    assert server._running is not None
    # Not through the front, whose limits are smaller.
    with AdminClient(server._running.sockets.grpc, timeout_s=120) as admin:
        admin.infer("multitask", {"text": texts}, ["truncated"])
    assert region_bytes(stub(server, "tokenizer").region) > 20 * MIB
    wait_until(lambda: region_bytes(stub(server, "tokenizer").region) <= MIB)
    wait_until(lambda: len(caplog.records) > 0)  # it is told once the model is loaded again
    time.sleep(3)
    (record,) = caplog.records
    assert "tokenizer held " in record.message
    assert "MiB of shared memory (its share is 9 MiB) and was reloaded" in record.message


def test_a_stopped_triton_is_restarted(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    triton = server.pid
    assert triton is not None
    os.kill(triton, signal.SIGSTOP)
    wait_until(lambda: server.pid not in (None, triton))
    with Clients(server, ["mood"]) as clients:
        wait_until(lambda: clients.answered["mood"] > 0)
    assert not psutil.pid_exists(triton)
    assert "Triton hangs: its process is stopped by a signal" in caplog.text
